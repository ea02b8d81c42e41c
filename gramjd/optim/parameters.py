"""The parameters of an optimizer as one point that can be moved, and restored to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gramjd.engine.graph import Selected
from gramjd.errors import InputError


def as_parameters(groups: Sequence[dict]) -> list[Tensor]:
    """The parameters of an optimizer's only group.

    Raises:
        InputError: several groups, or a parameter that is not real floating point.
    """
    if len(groups) != 1:
        raise InputError(
            f"got {len(groups)} groups of parameters; expected one: a step solves for all parameters at once"
        )
    found: list[Tensor] = groups[0]["params"]
    for place, tensor in enumerate(found):
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise InputError(f"parameter {place} is {tensor.dtype}, {tensor.layout}; expected a dense real tensor")
    return found


def trained(parameters: Sequence[Tensor]) -> Selected:
    """Those that require grad; what no residual reaches is left out of a Gramian, as in other optimizers.

    Raises:
        InputError: there are none.
    """
    found = Selected(p for p in parameters if p.requires_grad)
    if not found:
        raise InputError("no parameter requires grad: there is nothing to optimise")
    found.optional = True
    return found


class Point:
    """Where the parameters are now.

    A trial writes to their memory behind the back of autograd, which would otherwise refuse to use the graph again for
    the next trial: it is used only after `restore`. What is kept is written in the ordinary way, so that a graph that
    was made before raises when it is used.

    Args:
        parameters: moved in place.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        """Note their values."""
        self._parameters = parameters
        self._values = [p.detach().clone() for p in parameters]

    def moved(self, directions: Sequence[Tensor], factor: float) -> list[Tensor]:
        """The noted values plus `factor` times the directions."""
        pairs = zip(self._values, directions, strict=True)
        return [torch.add(value, direction.to(value.dtype), alpha=factor) for value, direction in pairs]

    def visit(self, values: Sequence[Tensor]) -> None:
        """Set them to `values` for a trial."""
        for p, value in zip(self._parameters, values, strict=True):
            p.data.copy_(value)

    def restore(self) -> None:
        """Set them to the noted values, to the bit."""
        self.visit(self._values)

    def keep(self, values: Sequence[Tensor]) -> None:
        """Set them to `values` for good."""
        with torch.no_grad():
            for p, value in zip(self._parameters, values, strict=True):
                p.copy_(value)

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Restore them where the block fails."""
        try:
            yield
        except BaseException:
            self.restore()
            raise
