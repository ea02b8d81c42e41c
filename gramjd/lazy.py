"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

MAPPED = ("gramjd.kernels", "gramjd.profiling")  # their folders stand beside gramjd/ until it is installed


Names = Mapping[str, str]


def attributes(
    package: str, homes: Names, submodules: Names | None = None, foreign: Names | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for the `__init__.py` of `package`.

    Args:
        package: its `__name__`.
        homes: public name to the module that defines it.
        submodules: modules of the package that are attributes, to the module that is imported for them: itself, or
            one that loads the modules inside it as well.
        foreign: names of other libraries, each with a sentence that says what to use here.

    Returns:
        The two functions. The first raises AttributeError for any other name, with the nearest public one.

    >>> find, names = attributes("gramjd", {"LossError": "gramjd.errors"})
    >>> find("LossError").__name__
    'LossError'
    >>> find("losserror")
    Traceback (most recent call last):
    AttributeError: module 'gramjd' has no attribute 'losserror'; did you mean LossError?
    """
    inside = submodules or {}

    def find(name: str) -> Any:
        if name in homes:
            found = getattr(_imported(homes[name]), name)
        elif name in inside:
            _imported(inside[name])
            found = _imported(f"{package}.{name}")
        else:
            hint = _hint(name, [*homes, *inside], foreign or {})
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")
        setattr(sys.modules[package], name, found)  # the next use does not come here
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes, *inside})

    return find, names


class _Module(ModuleType):
    """A module that is taken for a function: `gramjd.backward(losses)`."""

    meant: str

    def __call__(self, *_: object, **__: object) -> None:
        """Raise TypeError."""
        raise TypeError(f"{self.__name__} is a module, and not a function; {self.meant}")


def no_function(module: str, meant: str) -> None:
    """Let a call of the module raise TypeError with `meant`, what to write instead.

    >>> module = sys.modules["guessed"] = ModuleType("guessed")
    >>> no_function("guessed", "gramjd.gramian(losses) is one")
    >>> module()
    Traceback (most recent call last):
    TypeError: guessed is a module, and not a function; gramjd.gramian(losses) is one
    """
    sys.modules[module].__class__ = _Module
    vars(sys.modules[module])["meant"] = meant


def _imported(module: str) -> ModuleType:
    """The module; in a checkout that is not installed an error that says so."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in MAPPED:
            raise
        root = Path(__file__).resolve().parent.parent
        raise ImportError(
            f"gramjd was found in {root} but is not installed there, so {error.name} is missing: run"
            f" pip install -e {root}"
        ) from None


def _hint(name: str, known: Collection[str], foreign: Mapping[str, str]) -> str:
    if name in foreign:
        return f"; {foreign[name]}"
    by_lower = {one.lower(): one for one in known}
    stem = name.lower().removesuffix("weighting")  # TorchJD calls a function of the Gramian UPGradWeighting
    near = [stem] if stem in by_lower else get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)
    return f"; did you mean {by_lower[near[0]]}?" if near and not name.startswith("_") else ""
