"""Random loss weighting: other weights every step."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation._check import check_shape
from gramjd.aggregation._stateful import Stateful
from gramjd.aggregation._weighting import Weighting, weights_dtype


class Random(Stateful, Weighting):
    """`w = softmax(z)`, z a standard normal draw per call: positive weights that sum to one. G is not looked at.

    Drawn on the CPU in float64, so that a seed gives the same weights on every device and in every dtype. Cost: O(m).

    Table 1: non-conflicting no, linear under scaling yes (for the same draw), weighted yes.

    Args:
        seed: an int, for draws of its own; a torch.Generator on the CPU; or None for torch's global generator.

    Raises:
        AggregatorError: bad `seed`; or `G` [m, m] is not a square floating-point matrix.

    Source: Lin, Ye, Zhang and Tsang, Reasonable effectiveness of random weighting (2022), section 3 (RGW).

    >>> import torch
    >>> from gramjd.aggregation import Random
    >>> w = Random(seed=0)(torch.eye(3))
    >>> torch.equal(w, Random(seed=0)(torch.eye(3))), round(float(w.sum()), 6)
    (True, 1.0)
    """

    _scale_free = True

    def __init__(self, seed: int | torch.Generator | None = None) -> None:
        """Make the generator, if it is to be one of its own."""
        super().__init__(seed)

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]."""
        z = torch.randn(check_shape(G), dtype=torch.float64, generator=self._generator)
        return z.softmax(0).to(G.device, weights_dtype(G), non_blocking=True)

    def __repr__(self) -> str:
        """The call that makes this aggregator (with the seed it started from)."""
        return f"Random(seed={self._seed})"
