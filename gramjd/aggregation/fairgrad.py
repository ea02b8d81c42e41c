"""FairGrad: alpha-fair shares of the progress."""

from __future__ import annotations

from torch import Tensor

from gramjd.aggregation._cosine_weighting import CosineWeighting, UnitGradients
from gramjd.aggregation.solvers.nash import bargain
from gramjd.errors import AggregatorError

_SMALLEST, _LARGEST = 0.1, 20.0


class FairGrad(CosineWeighting):
    """`w > 0` with `G w = w^(-1/alpha)`, componentwise: the gains `g_i . y` are alpha-fair.

    `alpha = 1` is Nash-MTL; small alpha cares for the total gain, large alpha for the smallest one. A gradient of zero
    gets weight 0 and the others share without it; at a Pareto-stationary point (up to the rounding of `G`) there is no
    solution and `w = 0`. Each equation holds to 1e-9, or exactly as `gramjd.aggregation.solvers` defines it. Solved by
    Newton steps of O(m^3): about twenty, and a hundred or two for an alpha far from 1 and lengths far apart. On a GPU
    their number is fixed, and NaN says that they were not enough, which was not seen for lengths within a factor of
    1e3.

    Properties: non-conflicting yes (`G w > 0`), linear under scaling no, weighted yes.

    Args:
        alpha: from 0.1 to 20. (0 would be the sum of the losses, infinity the max-min fair update.)

    Raises:
        AggregatorError: bad `alpha`; or `G` [m, m] is not square, finite, symmetric and, up to rounding, positive
            semi-definite.

    Source: Ban and Ji, Fair resource allocation in multi-task learning (2024), equation 4.

    >>> import torch
    >>> from gramjd.aggregation import FairGrad
    >>> FairGrad(0.5)(torch.tensor([[8.0, 0.0], [0.0, 1.0]]))
    tensor([0.5000, 1.0000])
    """

    _scale_free = False

    def __init__(self, alpha: float) -> None:
        """Check the exponent."""
        if isinstance(alpha, bool) or not (isinstance(alpha, (int, float)) and _SMALLEST <= alpha <= _LARGEST):
            raise AggregatorError(f"alpha must be a number from {_SMALLEST} to {_LARGEST:g}; got {alpha!r}")
        self._alpha = float(alpha)

    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        return bargain(cone.C, cone.norms, 1 / self._alpha, eps, cone.look, cone.lift)

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return f"FairGrad(alpha={self._alpha})"
