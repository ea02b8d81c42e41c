"""Mean: ordinary gradient descent on the average loss."""

from __future__ import annotations

from torch import Tensor

from gramjd.aggregation._check import check_shape
from gramjd.aggregation._weighting import Weighting, weights_dtype


class Mean(Weighting):
    """`w = 1/m`: the gradient of the average loss, the baseline. Not non-conflicting.

    Raises:
        AggregatorError: `G` is not a square floating-point matrix.

    >>> import torch
    >>> from gramjd.aggregation import Mean
    >>> Mean().aggregate(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    tensor([1., 1.])
    """

    _scale_free = True

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]."""
        m = check_shape(G)
        return G.new_full((m,), 1 / max(m, 1), dtype=weights_dtype(G))
