"""A function that computes losses, called again later under the circumstances of its first call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from gramjd.engine.autograd import casts, under
from gramjd.errors import LossError
from gramjd.losses import Losses, as_given, as_losses

# How far losses may lie from those of the first time, relative to the largest; elsewhere 1e-2.
GAPS = {torch.float64: 1e-12, torch.float32: 1e-5}


class Again:
    """A function that computes losses, called with the random numbers and the autocast of its first call."""

    def __init__(self, function: Callable[..., Losses], arguments: Sequence[Any]) -> None:
        self._function, self._arguments = function, arguments
        self._cpu, self._devices = torch.get_rng_state(), get_device_states(*arguments)
        self._casts = casts()
        self._values: list[Tensor] = []

    def first(self) -> Losses:
        """The losses, for the first time."""
        found = self._function(*self._arguments)
        found = found if isinstance(found, Mapping) else as_given(found)
        self._values = [loss.detach().clone() for loss in listed(as_given(found)) if isinstance(loss, Tensor)]
        return found

    def __call__(self) -> list[Tensor]:
        """The losses again. Raises LossError if they are others."""
        devices, states = self._devices
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices))
            torch.set_rng_state(self._cpu)
            set_device_states(devices, states)
            stack.enter_context(torch.enable_grad())
            stack.enter_context(under(self._casts))
            found = as_losses(self._function(*self._arguments))
        before = [value for value in self._values if value.numel()]
        gap = _gap(found, before)
        if gap:
            raise LossError(
                f"a function returned other losses than the first time ({gap}): between add() and step() neither "
                "parameters nor data may change, and what it does may depend on nothing but its arguments and torch's "
                "random numbers"
            )
        return found


def _gap(found: Sequence[Tensor], before: Sequence[Tensor]) -> str:
    """In which way losses differ; empty if they do not."""
    shapes = [[tuple(loss.shape) for loss in side] for side in (before, found)]
    if shapes[0] != shapes[1]:
        return f"shapes {shapes[0]}, then {shapes[1]}"
    for new, old in zip(found, before, strict=True):
        largest = float(old.abs().max())
        off = float((new.detach() - old).abs().max())
        if not off <= GAPS.get(old.dtype, 1e-2) * largest:
            return f"off by {off:.3g} where the largest is {largest:.3g}"
    return ""


def listed(losses: Any) -> list[Any]:
    """Losses that were handed in, as a list of tensors."""
    return [losses] if isinstance(losses, Tensor) else list(losses)
