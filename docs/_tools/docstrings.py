"""What mkdocstrings is shown: the package as it is installed, and docstrings marked up.

`kernels/` and `profiling/` are installed as `gramjd.kernels` and `gramjd.profiling`, and are put there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import griffe

sys.path.insert(0, str(Path(__file__).parent))  # this file is loaded by its path: what stands beside it

from markup import marked_up

ROOT = Path(__file__).resolve().parents[2]
MAPPED = ("kernels", "profiling")


class Docstrings(griffe.Extension):
    """Applies all of this to what is loaded."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: object) -> None:
        """Put the mapped folders where they are installed."""
        if pkg.path == "gramjd":
            for name in MAPPED:
                same = {"extensions": loader.extensions, "lines_collection": loader.lines_collection}
                finder = griffe.GriffeLoader(**same, search_paths=[ROOT], modules_collection=loader.modules_collection)
                pkg.set_member(name, finder.load(name))
                loader.modules_collection.members.pop(name)

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Change the text of the object's docstring, if it has one and was not changed before."""
        if obj.docstring is not None and not obj.extra["gramjd"].get("marked up"):
            obj.extra["gramjd"]["marked up"] = True
            obj.docstring.value = marked_up(obj.docstring.value)
