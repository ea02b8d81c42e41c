"""Bargaining weights: the positive solution of `G w = w^-p`, by a primal-dual Newton method.

The equation is the optimality condition of a strictly convex function, `w^T G w / 2` plus a barrier at zero, so there
is at most one solution. There is one exactly if some direction decreases all losses.

For cosines C it reads `C x = y`, `x^p y = h`. Newton's method on `y = C x` and `p log x + log y = log h`, with steps
that leave x and y positive, is what interior-point methods do for `x y = mu`. It starts on the second equation and off
the first, which needs no point that satisfies both inequalities. About ten steps for p = 1; from its solution others
are reached in about ten more, and in up to a hundred where h, which is all ones for p = 1, is very uneven.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gramjd.aggregation.solvers.rounding import EPS
from gramjd.aggregation.solvers.simplex import distance_to_conflict
from gramjd.errors import AggregatorError

_MOST = 300  # steps, where looking at values can end them earlier
_FIXED = 30  # steps elsewhere, for p = 1
_FIXED_MORE = 20, 30.0  # from there to another p: the first of them, and so many more per unit of its logarithm
_BACK_OFF = 0.95  # the part of the way to zero that a step may go
_CLOSE = 1e-9
_DECIDES = 1e-2  # the part of a gain from which on it is no gain of G, but of what was added to it


def bargain(C: Tensor, norms: Tensor, p: float, eps: float, look: bool, lift: float = 0.0) -> Tensor:
    """`w > 0` with `G w = w^-p`, [m] in float64.

    Gradients of zero get `w = 0` and have no say in the rest; all of w is zero if the others are Pareto-stationary up
    to the rounding `eps` of the Gramian. NaN where the iteration did not converge and `look` is False.
    `lift` is what the diagonal of `C` has beyond the Gramian: where that decides, w is zero, as `G w` is not `w^-p`.

    Raises:
        AggregatorError: the iteration did not converge.
    """
    alive = norms > 0
    away = torch.where(alive.any(), distance_to_conflict(C, alive, eps, look), 0.0)
    # Closer to stationary than this, float64 has no three digits of the solution: C w is what is left of large terms.
    stationary = away <= 1e4 * alive.sum() * EPS
    if look and stationary:
        return torch.zeros_like(norms)
    scale = (torch.where(alive, norms.log(), 0.0).sum() / alive.sum()).exp()
    n = torch.where(alive, norms / scale, 1.0)
    # Nearly opposed gradients leave C x as a difference of large numbers: no step is smaller than its rounding.
    enough = (10 * len(norms) * EPS / away).clamp_min(_CLOSE)
    one = torch.ones_like(n)
    x, y, found = _newton(C, one, one, one, 1.0, enough, look)
    if p != 1:
        h = n ** (p - 1)
        larger = ((h / (x**p * y)).log().mean() / (1 + p)).exp()
        x, _, found = _newton(C, x * larger, y * larger, h, p, enough, look)
    if look and not found:
        raise AggregatorError(
            f"could not solve G w = w^-{p:.3g} in {_MOST} steps. Use an alpha nearer to 1, or bring the losses to"
            " similar scales"
        )
    stationary = stationary | (lift * x > _DECIDES * (C @ x)).any()
    w = x / n * scale ** (-2 / (1 + p))
    return torch.where(stationary | ~alive, 0.0, torch.where(found, w, torch.nan))


def _newton(
    C: Tensor, x: Tensor, y: Tensor, h: Tensor, p: float, enough: Tensor, look: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`x > 0` and `y = C x` with `x^p y = h`, all [m], from any positive x and y; and whether they were found, []."""
    found = torch.zeros_like(enough, dtype=torch.bool)
    few, more = _FIXED_MORE
    fixed = _FIXED if p == 1 else few + int(more * abs(math.log(p)))
    for _ in range(_MOST if look else fixed):
        short = p * x.log() + y.log() - h.log()
        M = C + torch.diag(p * y / x)
        size = M.diagonal().sqrt()
        M = M / torch.outer(size, size)
        M.diagonal().add_(4 * len(x) * EPS)  # rounding could leave it indefinite; the solution does not depend on it
        L, failed = torch.linalg.cholesky_ex(M)
        to_x = torch.cholesky_solve(((y - C @ x - y * short) / size)[:, None], L)[:, 0] / size / x
        to_y = -short - p * to_x
        step = _BACK_OFF / torch.maximum(-to_x, -to_y).amax().clamp_min(_BACK_OFF)
        go_on = ~found & (failed == 0)
        x = torch.where(go_on, x * (1 + step * to_x), x)
        y = torch.where(go_on, y * (1 + step * to_y), y)
        found = found | (go_on & (to_x.abs().amax() <= enough))
        if look and bool(found | (failed > 0)):
            break
    # What is solved up to the rounding of its terms is solved, even if that rounding still moves an entry of x.
    off = (C @ x - h * x**-p).abs() <= _CLOSE * h * x**-p + 8 * len(x) * EPS * (C.abs() @ x)
    return x, y, found | off.all()
