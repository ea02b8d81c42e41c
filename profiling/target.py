"""What is profiled: a function of the user's that makes a model and its losses.

    def make(m=32):
        model = torch.nn.Linear(784, 10)
        images, labels = torch.randn(m, 784), torch.randint(10, (m,))
        return model, lambda: cross_entropy(model(images), labels, reduction="none")

The second thing returned is called once a step and gives the losses with a fresh graph. With an argument `m` the
number of losses can be chosen from outside, as sweeps and the search for the largest m do.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gramjd.errors import InputError, LossError
from gramjd.losses import Losses, as_inputs, as_losses

Make = Callable[..., Any]
CONTRACT = "it must return (model, losses): a torch.nn.Module and a function without arguments that gives the losses"


@dataclass(frozen=True)
class Work:
    """A step made ready: `losses()` runs the forward pass, `parameters` are what the losses are differentiated by."""

    model: nn.Module | None
    parameters: dict[str, Tensor]
    losses: Callable[[], Losses]
    m: int
    device: torch.device

    def vector(self) -> Tensor:
        """All losses in one tensor [m]."""
        return torch.cat([loss.flatten() for loss in as_losses(self.losses())])

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None


def load(spec: str) -> Make:
    """The function that `package.module:function` or `path/to/file.py:function` names.

    Raises:
        InputError: the text is of another form, the module cannot be found, or has no such function.

    >>> load("math:hypot")(3.0, 4.0)
    5.0
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise InputError(f"got {spec!r}; expected module:function or file.py:function")
    module = _from_file(Path(where)) if where.endswith(".py") else _from_path(where)
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise InputError(f"{where} has no function {name!r}: check the part after the colon of {spec!r}")
    return function


def _from_path(name: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise InputError(f"there is no module {name!r}: run where it can be imported, or give a file.py") from None


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def spec_of(make: Make | str) -> str:
    """How another process finds the function.

    Raises:
        InputError: it cannot, as the function is not at the top of a module or file.
    """
    if isinstance(make, str):
        return make
    module, name = getattr(make, "__module__", None), getattr(make, "__qualname__", "<unnamed>")
    if module == "__main__":
        module = getattr(sys.modules["__main__"], "__file__", None)
    if module is None or "<" in name:
        raise InputError(
            f"{name} cannot be imported by another process: define it at the top of a file, or pass isolate=False "
            "to measure everything in this process"
        )
    return f"{module}:{name}"


def build(make: Make | str, m: int | None = None) -> Work:
    """Call the user's function and check what it made, with one forward pass.

    Args:
        make: the function or where it is.
        m: handed to it as `m`; None leaves it to the function.

    Raises:
        InputError: the function does not take `m`, or returned something else than a model and a function.
        LossError: what that function returns is no vector of losses.
    """
    function = load(make) if isinstance(make, str) else make
    name = getattr(function, "__qualname__", repr(function))
    made = function(**_arguments(function, name, m))
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[1])):
        found = f"a tuple of {len(made)}" if isinstance(made, tuple) else f"a {type(made).__name__}"
        raise InputError(f"{name} returned {found}; {CONTRACT}")
    model, losses = made
    m, device = _checked(name, losses())
    parameters = _parameters(name, model)
    return Work(model if isinstance(model, nn.Module) else None, parameters, losses, m, device)


def _arguments(function: Make, name: str, m: int | None) -> dict[str, int]:
    try:
        takes = inspect.signature(function).parameters
    except ValueError:
        takes = {}  # type: ignore[assignment]
    needs = [p.name for p in takes.values() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD,)]
    if m is None and needs:
        raise InputError(f"{name} needs {', '.join(needs)}: give it defaults, or choose m (--m, m=) if that is all")
    if m is not None and "m" not in takes:
        raise InputError(f"{name} takes no argument `m`, so the number of losses cannot be chosen from outside")
    return {} if m is None else {"m": m}


def _checked(name: str, losses: Any) -> tuple[int, torch.device]:
    try:
        found = as_losses(losses)
    except LossError as error:
        raise LossError(f"the losses of {name}: {error}") from None
    m = sum(loss.numel() for loss in found)
    if m < 2:
        raise LossError(
            f"the losses of {name} are a single number; give one loss per sample or task "
            "(reduction='none'), as there is nothing to combine in one"
        )
    return m, found[0].device


def _parameters(name: str, model: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor]
    if isinstance(model, nn.Module):
        found = {n: p for n, p in model.named_parameters() if p.requires_grad}
    elif isinstance(model, Iterable) and not isinstance(model, Tensor):
        found = {f"parameter {n}": p for n, p in enumerate(model)}
    else:
        raise InputError(f"{name} returned a {type(model).__name__} as its model; {CONTRACT}")
    as_inputs(found)
    return found
