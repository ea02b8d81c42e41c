"""CAGrad: near the mean gradient, the update that does most for the worst-off loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gramjd.aggregation._cosine_weighting import CosineWeighting, UnitGradients
from gramjd.aggregation.solvers.dual_cone import dual_cone
from gramjd.aggregation.solvers.rounding import of_square
from gramjd.aggregation.solvers.second_order import least_with_length
from gramjd.aggregation.solvers.simplex import distance_to_conflict
from gramjd.errors import AggregatorError

_DAMPING = 1e-14  # on the diagonal of cosines between unit vectors: it makes no difference but to singular ones


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
        """The call that makes this weighting."""
        return f"CAGrad(c={self._c})"


def _correction(cone: UnitGradients, v: Tensor, c: float, eps: float) -> Tensor:
    """`x >= 0` [m] with `|R x| = c` that maximises the least gain: of `C (x + v) / v`, where v is not zero.

    Where no direction lets all gain, and there is a point within reach where nobody loses, the nearest such point to v
    is returned.
    """
    alive, C = v > 0, cone.C
    away = torch.where(alive.all(), distance_to_conflict(C, alive, eps, cone.look), 0.0)
    if not cone.look or away == 0:
        settled = dual_cone(C, v[None], method=cone.method)[0] - v
        enough = (away == 0) & (settled @ C @ settled <= c * c)
        if cone.look and enough:
            return settled
    best = _most_gain(C, v, c, cone.look)
    return best if cone.look else torch.where(enough, settled, best)


def _most_gain(C: Tensor, v: Tensor, c: float, look: bool) -> Tensor:
    """That x as the dual problem has it, or in closed form for its positive entries, if that is the better one."""
    alive = v > 0
    d = torch.where(alive, torch.where(alive, v, torch.inf).amin() / v, 1.0)
    # No gain is larger than 1 + c, so what a gradient of zero is given here makes it no part of the answer.
    q = torch.where(alive, C @ v, 2 + 2 * c)
    s, free = least_with_length(C, q, d, c, look)
    candidates = torch.stack([s, _on_support(C, q, d, c, free & alive)]) * alive
    lengths = ((candidates @ C) * candidates).sum(1, keepdim=True).sqrt()
    candidates = candidates * (c / lengths)
    gains = torch.where(alive, (q + candidates @ C) / d, torch.inf).amin(1)
    return torch.where(gains[1] > gains[0], candidates[1], candidates[0])


def _on_support(C: Tensor, q: Tensor, d: Tensor, c: float, free: Tensor) -> Tensor:
    """`x = t p - r` [m], zero but on `free`, with `C x + q = t d` there and `|R x| = c`."""
    M = torch.where(free[:, None] & free, C, 0.0)
    M.diagonal().add_(torch.where(free, _DAMPING, 1.0))
    L, _ = torch.linalg.cholesky_ex(M)
    p, r = torch.cholesky_solve(torch.stack([d, q], 1) * free[:, None], L).unbind(1)
    square, product, rest = p @ C @ p, p @ C @ r, r @ C @ r - c * c
    t = (product + (product * product - square * rest).clamp_min(0).sqrt()) / square
    return (t * p - r).clamp_min(0)
