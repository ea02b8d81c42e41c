"""What all scalarizations share: losses as a checked vector, and a state that can be saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gramjd import options
from gramjd.errors import InputError, LossError
from gramjd.losses import Losses, as_losses

as_number = partial(options.as_number, error=InputError)
as_count = partial(options.as_count, error=InputError)


class Scalarization(ABC):
    """A map from the m losses of a step to one loss, with a memory."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._kept: dict[str, Tensor] = {}

    def __call__(self, losses: Losses) -> Tensor:
        """One scalar for the losses [m] of a step.

        Args:
            losses: one scalar per task: a tensor [m], a sequence, or a mapping from names.

        Raises:
            LossError: as `gramjd.gramian` does; losses with more than one dimension; another number of them than
                before; a value that the formula is not defined for.
        """
        return self._scalar(vector(losses))

    @abstractmethod
    def _scalar(self, losses: Tensor) -> Tensor:
        """The scalar, for a vector [m]."""

    def reset(self) -> None:
        """Go back to the state after construction."""
        self._kept = {}

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that is kept; it can be saved with `torch.save`."""
        return {name: value.clone() for name, value in self._kept.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            InputError: something that is no tensor.
        """
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise InputError(f"{name!r} in the state must be a tensor; got {value!r}")
        self._kept = {name: value.detach().clone() for name, value in state.items()}

    def _recall(self, name: str, losses: Tensor) -> Tensor | None:
        """What is kept under a name, one entry per loss; None before the first call."""
        kept = self._kept.get(name)
        if kept is None:
            return None
        if kept.shape[-1] != len(losses):
            raise LossError(
                f"{type(self).__name__} keeps its {name} for {kept.shape[-1]} losses, but now there are {len(losses)}: "
                "call reset() first, or use one for each set of losses"
            )
        return kept.to(losses.device)


def vector(losses: Losses) -> Tensor:
    """The losses as one vector [m]."""
    found = as_losses(losses)
    if any(loss.ndim > 1 for loss in found) or (len(found) > 1 and any(loss.numel() > 1 for loss in found)):
        shapes = ", ".join(str(tuple(loss.shape)) for loss in found)
        raise LossError(f"one scalar per task is expected, as a tensor [m] or m scalars; got {shapes}: reduce first")
    return torch.cat([loss.reshape(-1) for loss in found])


def positive(losses: Tensor, what: str) -> Tensor:
    """The losses, which must be above zero for `what`."""
    if not bool((losses.detach() > 0).all()):
        raise LossError(f"{what} needs losses above 0; got {losses.detach().tolist()}")
    return losses
