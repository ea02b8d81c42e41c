"""Aggregators that look at the values of the losses besides the Gramian."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from gramjd.aggregation._check import check_shape
from gramjd.aggregation._weighting import Weighting, weights_dtype
from gramjd.errors import AggregatorError


class LossWeighting(Weighting):
    """An aggregator that looks at the losses, too: from the Gramian `G` [m, m] and the m losses to the weights [m].

    The functions that compute gradients hand over the detached losses: with the shape they had if they were one
    tensor (e.g. [n, k]), else as one vector [m]. Row i of G belongs to element i, read row by row.
    """

    takes_losses: ClassVar[bool] = True

    def __call__(self, G: Tensor, losses: Tensor | None = None) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m] of `losses` (m elements), on its device."""
        values = self._checked(check_shape(G), losses).to(G.device)
        with torch.no_grad():
            return self._weights(G.detach(), values).to(G.device, weights_dtype(G))

    def _checked(self, m: int, losses: Tensor | None) -> Tensor:
        name = type(self).__name__
        if losses is None:
            raise AggregatorError(f"{name} needs the values of the losses: call it with (G, losses)")
        if not isinstance(losses, Tensor) or not losses.is_floating_point():
            got = str(losses.dtype) if isinstance(losses, Tensor) else type(losses).__name__
            raise AggregatorError(f"{name} needs the losses as a real floating-point tensor; got {got}")
        if losses.numel() != m:
            raise AggregatorError(
                f"{name} got losses of shape {list(losses.shape)} for a Gramian that is {m} x {m}: give one per row"
            )
        return losses.detach()

    @abstractmethod
    def _weights(self, G: Tensor, losses: Tensor) -> Tensor:
        """The weights [m], any dtype, for `G` [m, m], of which only the shape has been checked, and its losses."""
