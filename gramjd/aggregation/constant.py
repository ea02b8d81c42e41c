"""Constant: weights fixed by the user."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gramjd.aggregation._check import as_vector, check_length, check_shape
from gramjd.aggregation._weighting import Weighting, weights_dtype


class Constant(Weighting):
    """`w` as given: the gradient of a fixed weighted sum of the losses. Not non-conflicting.

    Args:
        weights: [m] finite numbers, one per loss; zero and negative ones are allowed.

    Raises:
        AggregatorError: `weights` is no finite vector, or its length is not that of the Gramian.

    >>> import torch
    >>> from gramjd.aggregation import Constant
    >>> Constant([0.5, 2.0]).aggregate(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    tensor([1., 4.])
    """

    _scale_free = True
    _per_loss = ("_weights",)

    def __init__(self, weights: Sequence[float] | Tensor) -> None:
        """Keep `weights` [m] in float64."""
        self._weights = as_vector(weights, "weights", positive=False)

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]."""
        check_length(self._weights, "weights", check_shape(G))
        self._weights = self._weights.to(G.device)
        return self._weights.to(weights_dtype(G), copy=True)

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return f"Constant({self._weights.tolist()})"
