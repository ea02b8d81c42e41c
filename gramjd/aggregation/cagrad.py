"""CAGrad: near the mean gradient, the update that does most for the worst-off loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gramjd.aggregation._cosine_weighting import CosineWeighting
from gramjd.aggregation.solvers.dual_cone import dual_cone
from gramjd.aggregation.solvers.rounding import of_square
from gramjd.aggregation.solvers.scaling import Cosines
from gramjd.aggregation.solvers.simplex import ConicFit, distance_to_conflict
from gramjd.errors import AggregatorError

_STEPS = 200
_ACCURACY = 1e-13


class CAGrad(CosineWeighting):
    """`J^T w` maximises `min_i g_i . y` over the ball `|y - g| <= c |g|` around the mean gradient `g = J^T 1 / m`.

    In weights: `w = (1 + c |J^T 1| / |J^T s| s) / m`, s minimising `1^T G s + c |J^T 1| |J^T s|` over the simplex.
    `c = 0` is Mean, and so are gradients that cancel up to rounding; large c tends to the direction of MGDA. At a
    Pareto-stationary point `J^T s` can be zero and the maximiser is not unique: the one nearest to the mean is
    returned, which is DualProj's if c is large enough. Solved as one equation in one unknown (the least gain `lambda`)
    along nonnegative least squares problems, in closed form once the active set is known: O(m^3) a step, about ten
    steps.

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

    def __init__(self, c: float) -> None:
        """Check the radius."""
        if isinstance(c, bool) or not (isinstance(c, (int, float)) and 0 <= c < math.inf):
            raise AggregatorError(f"c must be a finite number, 0 or more; got {c!r}")
        self._c = float(c)

    def _weights(self, cone: Cosines, eps: float) -> Tensor:
        m, norms = len(cone.norms), cone.norms.cpu()
        w = torch.full((m,), 1 / m, dtype=torch.float64)
        alive = norms > 0
        n = norms[alive]
        C = cone.C.cpu()[alive][:, alive]
        square = n @ C @ n
        if self._c == 0 or bool(square <= of_square(n, eps)):
            return w
        v = n / square.sqrt()
        x = _correction(C, v, self._c, distance_to_conflict(C, eps) if bool(alive.all()) else 0.0)
        w[alive] += x / v / m
        return w

    def __repr__(self) -> str:
        """The call that makes this weighting."""
        return f"CAGrad(c={self._c})"


def _correction(C: Tensor, v: Tensor, c: float, away: float) -> Tensor:
    """`x >= 0` [m] with `|R x| = c`, optimal: `C (x + v) >= lambda d`, with equality where `x > 0`, for some lambda.

    Here `d = min v / v`, and `away` is what `distance_to_conflict` says, or 0 for stationary gradients; then lambda
    cannot exceed 0, and the solution for `lambda = 0` is returned if that has `|R x| <= c`.
    """
    d = v.amin() / v
    fit = ConicFit(C, d)
    gains = C @ v
    low = float((gains / d).amin())
    if away == 0:
        x = dual_cone(C, v[None])[0] - v
        if float(x @ C @ x) <= c * c:
            return x
        high = float(d @ x)
    else:
        high = float(((gains + c) / d).amin()) + c / math.sqrt(away)
    x, tau = torch.zeros_like(v), high
    for k in range(_STEPS):
        x = fit.solve(v, tau)
        excess = float(x @ C @ x) - c * c
        if abs(excess) <= _ACCURACY * c * c:
            break
        low, high = (low, tau) if excess > 0 else (tau, high)
        middle = (low + high) / 2
        if not low < middle < high:
            break
        tau += _to_radius(fit, x, excess)
        # Now and then halve the bracket: steps that stay on one piece of the path may land off it for long.
        if not low < tau < high or k % 4 == 3:
            tau = middle
    return x


def _to_radius(fit: ConicFit, x: Tensor, excess: float) -> float:
    """The change of tau that takes `|R x|^2` down by `excess`, if the positive entries of x stay the positive ones."""
    if not bool((x > 0).any()):
        return math.nan
    p = fit.slope(x > 0)
    Cp = fit.C @ p
    a, b = float(p @ Cp), float(x @ Cp)
    root = b * b - a * excess
    if root < 0 or b + math.sqrt(root) <= 0:
        return math.nan
    return -excess / (b + math.sqrt(root))
