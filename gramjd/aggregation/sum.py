"""Sum: ordinary gradient descent on the total loss."""

from __future__ import annotations

from torch import Tensor

from gramjd.aggregation._check import check_shape
from gramjd.aggregation._weighting import Weighting, weights_dtype


class Sum(Weighting):
    """`w = 1`: the gradient of the total loss. Not non-conflicting.

    Raises:
        AggregatorError: `G` is not a square floating-point matrix.

    >>> import torch
    >>> from gramjd.aggregation import Sum
    >>> Sum().aggregate(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    tensor([2., 2.])
    """

    _scale_free = True

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]."""
        return G.new_ones(check_shape(G), dtype=weights_dtype(G))
