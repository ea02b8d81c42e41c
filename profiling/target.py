"""What is profiled: a function of the user's that makes a model and its losses.

    def make(m=32):
        model = torch.nn.Linear(784, 10)
        images, labels = torch.randn(m, 784), torch.randint(10, (m,))
        return model, lambda: cross_entropy(model(images), labels, reduction="none")

The second thing returned is called once a step and gives the losses with a fresh graph. With an argument `m` the
number of losses can be chosen from outside, as sweeps and the search for the largest m do.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from gramjd.errors import InputError, LossError
from gramjd.locate import locate
from gramjd.losses import Losses, as_inputs, as_losses

Make = Callable[..., Any]
CONTRACT = "it must return (model, losses): a torch.nn.Module and a function without arguments that gives the losses"


@dataclass(frozen=True)
class Work:
    """A step made ready.

    Args:
        model: the module whose parameters are trained; None if there is none.
        parameters: what the losses are differentiated by.
        losses: the forward pass: m losses with a fresh graph at each call.
        m: how many.
        device: where they lie.
        batch_dims: what TorchJD's Gramian engine is told about the model, one after the other until it takes it: the
            dimension of samples that stay apart, or None.
    """

    model: nn.Module | None
    parameters: dict[str, Tensor]
    losses: Callable[[], Losses]
    m: int
    device: torch.device
    batch_dims: tuple[int | None, ...] = (0, None)

    def vector(self) -> Tensor:
        """All losses in one tensor [m]; not looked at, as in a plain step."""
        flat = [loss.flatten() for loss in as_losses(self.losses(), finite=False)]
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None


def load(place: str) -> Make:
    """The function that `package.module:function` or `path/to/file.py:function` names.

    Raises:
        InputError: there is none.
    """
    found = locate(place)
    if not callable(found):
        raise InputError(f"{place} is a {type(found).__name__}; expected a function")
    return cast(Make, found)


def spec_of(make: Make | str) -> str:
    """How another process finds the function.

    Raises:
        InputError: it cannot, as the function is not at the top of a module or file.
    """
    if isinstance(make, str):
        return make
    if isinstance(make, torch.nn.Module):
        raise InputError(
            f"got a {type(make).__name__}; expected a function that makes a model and returns it with a function of "
            "its losses: (model, losses)"
        )
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
