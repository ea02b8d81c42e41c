"""The geometric mean of the losses."""

from __future__ import annotations

from torch import Tensor

from gramjd.scalarization._scalarization import Scalarization, positive


class GeometricMean(Scalarization):
    """`(prod_i L_i)^(1/m)`: scaling one loss scales the result, and changes no direction.

    Raises:
        LossError: a loss that is not above 0.

    Source: Chennupati et al., MultiNet++: multi-stream feature aggregation and geometric loss strategy for multi-task
    learning (2019).

    >>> import torch
    >>> GeometricMean()(torch.tensor([2.0, 8.0], requires_grad=True)).item()
    4.0
    """

    def _scalar(self, losses: Tensor) -> Tensor:
        return positive(losses, "the geometric mean").log().mean().exp()
