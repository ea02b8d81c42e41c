"""Bargaining weights: the positive solution of `G w = w^-p`, by a Newton method that needs no line search.

The equation is the optimality condition of a strictly convex function, `w^T G w / 2` plus a barrier at zero, so there
is at most one solution. There is one exactly if some direction decreases all losses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gramjd.aggregation.solvers.rounding import EPS
from gramjd.aggregation.solvers.scaling import Cosines
from gramjd.aggregation.solvers.simplex import distance_to_conflict
from gramjd.errors import AggregatorError

_STEPS = 500
_PATIENCE = 100
_REACH = 0.999  # never closer to the boundary in one step: the subtraction would round to it
_CLOSE = 1e-9


def bargain(cone: Cosines, p: float, eps: float) -> Tensor:
    """`w > 0` with `G w = w^-p`, [m] in float64 on the CPU.

    Gradients of zero get `w = 0` and have no say in the rest; all of w is zero if the others are Pareto-stationary up
    to the rounding `eps` of the Gramian.

    Raises:
        AggregatorError: (never seen for p from 1/20 to 10) the iteration did not converge.
    """
    norms = cone.norms.cpu()
    w = torch.zeros_like(norms)
    alive = norms > 0
    C, n = cone.C.cpu()[alive][:, alive], norms[alive]
    away = distance_to_conflict(C, eps) if len(n) else 0.0
    # Closer to stationary than this, float64 has no three digits of the solution: C w is what is left of large terms.
    if away <= 1e4 * len(n) * EPS:
        return w
    scale = n.log().mean().exp()
    n = n / scale
    w[alive] = _newton(C, n ** (p - 1), p, away) / n * scale ** (-2 / (1 + p))
    return w


def _newton(C: Tensor, h: Tensor, p: float, away: float) -> Tensor:
    """`x > 0` with `C x = h x^-p`.

    The step is the Newton direction times `(1 - (1 + p r)^(-1/p)) / r`, where r is the largest relative decrease of
    an entry. That minimises an upper bound of the objective along the direction, so each step lowers it; it tends to
    the full step, and so to quadratic convergence, as r goes to zero. For p = 1 it is the damped step `1 / (1 + r)`
    of self-concordant functions.
    """
    x = h ** (1 / (1 + p))
    # Nearly opposed gradients leave C x as a difference of large numbers: no step is smaller than its rounding.
    enough = max(_CLOSE, 10 * len(x) * EPS / away)
    for k in range(_STEPS):
        barrier = h * x**-p
        off = barrier - C @ x
        if k > _PATIENCE and bool((off.abs() <= _CLOSE * barrier + 8 * len(x) * EPS * (C.abs() @ x)).all()):
            return x
        # Relative to x the Newton system has no units: rows and columns differ in size only as far as x C x does.
        M = x[:, None] * C * x + torch.diag(p * barrier * x)
        size = M.diagonal().sqrt()
        M = M / torch.outer(size, size)
        M.diagonal().add_(4 * len(x) * EPS)  # rounding could leave it indefinite; the solution does not depend on it
        L = torch.linalg.cholesky(M)
        step = torch.cholesky_solve((off * x / size)[:, None], L)[:, 0] / size
        r = float((-step).amax())
        damping = 1.0 if r <= 0 else min(-math.expm1(-math.log1p(p * r) / p), _REACH) / r
        x = x * (1 + damping * step)
        if float(step.abs().amax()) <= enough:
            return x
    raise AggregatorError(
        f"could not solve G w = w^-{p:.3g}: the last step still changed a weight by {float(step.abs().amax()):.1e} of"
        " itself. Use a larger alpha, or bring the losses to similar scales"
    )
