"""The build backend: setuptools, with one line more in an editable install.

Python takes a folder named `gramjd` without an `__init__.py`, such as a clone of this repository, for a part of a
namespace package. A regular package wins over it, but only one that stands in a folder on `sys.path`. setuptools maps
`kernels/` and `profiling/` into the package by a finder, and finders come after `sys.path`: in the folder above a
clone, `import gramjd` would succeed and give an empty package. So an editable install puts the clone on `sys.path`.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  # the other hooks

ROOT = Path(__file__).resolve().parent.parent.parent
LINE = "gramjd-checkout.pth"


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """setuptools' editable wheel, and in it a .pth file with the path of the clone; returns its name."""
    name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    add(Path(wheel_directory, name), LINE, f"{ROOT}\n".encode())
    return name


def add(wheel: Path, name: str, content: bytes) -> None:
    """Put one more file into a wheel, and into its list of files."""
    with zipfile.ZipFile(wheel) as old:
        files = {entry: old.read(entry) for entry in old.namelist()}
    (record,) = (entry for entry in files if entry.endswith(".dist-info/RECORD"))
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    files[name] = content
    files[record] = f"{name},sha256={digest},{len(content)}\n".encode() + files[record]
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
        for entry, data in files.items():
            new.writestr(entry, data)
