"""Imports that only an extra provides, with an error that names the extra."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from gramjd.errors import GramjdError


class MissingExtraError(GramjdError, ImportError):
    """A command needs a package that a plain install of gramjd does not bring."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Args:
        module: dotted name, such as `matplotlib.figure`.
        extra: the extra of gramjd that installs it.

    Raises:
        MissingExtraError: the module's package is not installed.

    >>> require("math", "demo").floor(2.5)
    2
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # A module that is installed but fails on an import of its own is a different fault: let it through.
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        package = module.split(".")[0]
        message = f"this needs {package}, which is not installed; install it with: pip install 'gramjd[{extra}]'"
        raise MissingExtraError(message) from None
