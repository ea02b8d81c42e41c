"""The shortest combination of gradients with nonnegative coefficients: the core of MGDA, and the test for conflict.

`min x^T C x` over `x >= 0, d . x = 1` is solved as `min x^T C x + (d . x - 1)^2` over `x >= 0`: the second term does
what the constraint on `d . x` would. It never bends the direction of the answer, only its length, and unlike the
constraint it leaves a plain nonnegative least squares problem. Where values may be looked at, pivoting solves the
regular ones and the method for singular ones the others; the interior-point method does all of them elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation.solvers.interior import interior
from gramjd.aggregation.solvers.nonnegative import nonnegative, root
from gramjd.aggregation.solvers.pivoting import pivot
from gramjd.aggregation.solvers.rounding import EPS, KNOWN, of_square, residual, room

_REGULAR = 1e-8


def nearest_to_zero(C: Tensor, d: Tensor, look: bool) -> Tensor:
    """`argmin {x^T C x : x >= 0, d . x = 1}`, [m] in float64; one of them where it is not unique.

    With `d = 1 / |g|` and `x = |g| w` this is the shortest convex combination of gradients, scaled so that short and
    long ones are told equally well; with `d = 1`, that of their directions.

    Args:
        C: [m, m] in float64, cosines.
        d: [m], from 0 to 1; coefficients with `d = 0` are left out (x = 0), and `C` must not join them to others.
        look: whether values may be looked at.

    >>> import torch
    >>> nearest_to_zero(torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64), True)
    tensor([0.8000, 0.4000], dtype=torch.float64)
    """
    A, q = C + torch.outer(d, d), torch.where(d > 0, -d, 1.0)[None]
    x = _looking(C, d, A, q) if look else interior(A, q)[0]
    return x / (d @ x)


def _looking(C: Tensor, d: Tensor, A: Tensor, q: Tensor) -> Tensor:
    """`argmin {x^T A x / 2 + q . x : x >= 0}`, [m], for `A = C + d d^T` and `q` [1, m], exact up to rounding."""
    L, failed = torch.linalg.cholesky_ex(A)
    regular = not failed and float(L.diagonal().square().amin()) > _REGULAR
    x, one = pivot(A, q, q < 0) if regular else torch.zeros_like(q), q.new_ones(1)
    if regular and float(residual(A, q, x, one)) <= KNOWN * len(d) * EPS:
        return x[0]
    R = torch.cat([root(C), d[:, None]], 1)
    target = torch.zeros_like(R[:1])
    target[0, -1] = -1
    return nonnegative(R, target, x, room(len(d)), one)[0]


def distance_to_conflict(C: Tensor, alive: Tensor, eps: float, look: bool) -> Tensor:
    """The squared length [] of the shortest convex combination of the gradients' directions, 0 to 1.

    It is zero where no direction decreases all losses (a Pareto-stationary point); exactly 0 is returned for what
    cannot be told from that once rounding the Gramian to `eps` has moved it. Only the gradients `alive` [m] count.

    >>> import torch
    >>> round(distance_to_conflict(torch.eye(4).double(), torch.ones(4) > 0, 1e-7, True).item(), 12)
    0.25
    """
    x = nearest_to_zero(C, alive.double(), look)
    square = x @ (C @ x)
    return torch.where(square > of_square(x, eps), square, 0.0)
