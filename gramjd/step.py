"""What a step returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gramjd.lazy import no_function
from gramjd.renamed import NAMES

no_function(__name__, NAMES["step"])


class _Pair(NamedTuple):
    weights: Tensor
    gramian: Tensor


class GramStep(_Pair):
    """What a step was made of: `weights [m]` and `gramian [m, m]`, both detached; a pair.

    `names`: that of each loss, where the losses were handed over by name, else None.

    >>> import torch
    >>> GramStep(torch.ones(1), torch.ones(1, 1), ("depth",))
    GramStep(weights=tensor([1.]), gramian=tensor([[1.]]), names=('depth',))
    """

    names: tuple[str, ...] | None

    def __new__(cls, weights: Tensor, gramian: Tensor, names: tuple[str, ...] | None = None) -> GramStep:
        """The pair, with the names beside it."""
        step = super().__new__(cls, weights, gramian)
        step.names = names
        return step

    def __repr__(self) -> str:
        """The pair, and the names if there are any."""
        pair = super().__repr__()
        return pair if self.names is None else f"{pair[:-1]}, names={self.names})"
