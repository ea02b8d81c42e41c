"""Objects by their place, as commands are given them: `package.module:name` or `path/to/file.py:name`."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from gramjd.errors import InputError


def locate(place: str) -> Any:
    """What stands at `MODULE:NAME` or `FILE.py:NAME`; the name may be dotted.

    Modules are looked for in the working directory too, and by a file next to it.

    Raises:
        InputError: the text is of another form, or there is no such module, file or name.

    >>> locate("math:hypot")(3.0, 4.0)
    5.0
    """
    where, _, names = place.rpartition(":")
    if not (where and names):
        raise InputError(f"got {place!r}; expected MODULE:NAME or FILE.py:NAME, such as my_package.losses:make")
    found: Any = _from_file(Path(where)) if where.endswith(".py") else _from_path(where)
    for name in names.split("."):
        if not hasattr(found, name):
            close = get_close_matches(name, dir(found), 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(f"{where} has nothing called {names!r}{hint}")
        found = getattr(found, name)
    return found


def _from_path(name: str) -> ModuleType:
    if "" not in sys.path:
        _look_in(Path.cwd())
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        # A module that is there and fails on an import of its own is a different fault: let it through.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise InputError(
            f"there is no module {name!r} here or among the installed packages: run where it can be imported, or give "
            "a FILE.py:NAME"
        ) from None


def _from_file(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"there is no file {str(path)!r}")
    _look_in(path.resolve().parent)
    module = module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
