"""CAGrad: near the mean gradient, the update that does most for the worst-off loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gramjd.aggregation._cosine_weighting import CosineWeighting, UnitGradients
from gramjd.aggregation.solvers.dual_cone import dual_cone
from gramjd.aggregation.solvers.most_gain import most_gain
from gramjd.aggregation.solvers.rounding import EPS, KNOWN, of_square
from gramjd.aggregation.solvers.simplex import distance_to_conflict
from gramjd.errors import AggregatorError

_SLACK = 1e-12
_FAR = 1e-12  # a square of a cosine


class CAGrad(CosineWeighting):
    """`J^T w` maximises `min_i g_i . y` over the ball `|y - g| <= c |g|` around the mean gradient `g = J^T 1 / m`.

    In weights: `w = (1 + c |J^T 1| / |J^T s| s) / m`, s minimising `1^T G s + c |J^T 1| |J^T s|` over the simplex.
    `c = 0` is Mean, and so are gradients that cancel up to rounding; large c tends to the direction of MGDA. At a
    Pareto-stationary point `J^T s` can be zero and the maximiser is not unique: the one nearest to the mean is
    returned, which is DualProj's if c is large enough. Exact, see `gramjd.aggregation.solvers`: in
    closed form once it is known which gradients bind, which takes a few rounds of O(m^3), or by bracketing the gain.

    Table 1: non-conflicting no for c < 1, yes for c >= 1; linear under scaling no; weighted yes.

    Args:
        c: the radius, 0 or more, in units of the length of the mean gradient. Not scaled back by `1 + c^2`.

    Raises:
        AggregatorError: bad `c`; or `G` [m, m] is not square, finite, symmetric and, up to rounding, positive
            semi-definite.

    Source: Liu, Liu, Jin, Stone and Liu, Conflict-averse gradient descent for multi-task learning (2021), equation 3.

    >>> import torch
    >>> from gramjd.aggregation import CAGrad
    >>> CAGrad(0.5).aggregate(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([0.7500, 0.7500])
    """

    _scale_free = True

    def __init__(self, c: float) -> None:
        """Check the radius."""
        if isinstance(c, bool) or not (isinstance(c, (int, float)) and 0 <= c < math.inf):
            raise AggregatorError(f"c must be a finite number, 0 or more; got {c!r}")
        self._c = float(c)

    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        C, n = cone.C, cone.norms
        even = torch.full_like(n, 1 / len(n))
        square = n @ C @ n
        cancelled = square <= of_square(n, eps)
        if self._c == 0 or (cone.look and cancelled):
            return even
        x = _correction(cone, n / square.sqrt(), self._c, eps)
        return torch.where(cancelled | (n == 0), even, even * (1 + x / n * square.sqrt()))

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return f"CAGrad(c={self._c})"


def _correction(cone: UnitGradients, v: Tensor, c: float, eps: float) -> Tensor:
    """`x >= 0` [m] with `|R x| = c` that maximises the least gain: of `C (x + v) / v`, where v is not zero.

    Where no direction lets all gain, and there is a point within reach where nobody loses, the nearest such point to v
    is returned.
    """
    alive, C = v > 0, cone.C
    d = torch.where(alive, torch.where(alive, v, torch.inf).amin() / v, 1.0)
    # No gain is larger than 1 + c, so what a gradient of zero is given here makes it no part of the answer.
    q = torch.where(alive, C @ v, 2 + 2 * c)
    best = torch.where(alive, most_gain(C, q, d, c, cone.look, v.sum()), 0.0)
    gain = ((q + C @ best) / d).amin()
    # A direction along which all cosines are `gain d / (1 + c)` or more.
    clear = (gain > 0) & ((gain * d.amin() / (1 + c)).square() > of_square(torch.ones_like(d) / len(d), eps) + _FAR)
    if cone.look and bool(clear & alive.all()):
        return best
    away = torch.where(alive.all(), distance_to_conflict(C, alive, eps, cone.look), 0.0)
    if cone.look and away > 0:
        return best
    settled = dual_cone(C, v[None], method=cone.method)[0] - v
    rounding = KNOWN * len(C) * EPS * settled.abs().sum().square()
    within = settled @ C @ settled <= c * c * (1 + _SLACK) + rounding
    return torch.where((away == 0) & within, settled, best)
