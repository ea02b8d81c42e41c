"""Least squares over nonnegative coefficients with a say on their sum: the core of MGDA and CAGrad.

`min |R (x + v)|^2 + (d . x - tau)^2` over `x >= 0`, for cosines `C = R^T R`. The second term does what a constraint on
`d . x` would: it never bends the direction of the answer, only its length, and unlike the constraint it leaves a plain
nonnegative least squares problem, which has a solution whatever the rank. Pivoting solves the regular ones,
Lawson and Hanson's active set the others. All of it runs on the CPU: dozens of small solves in a row cost less there
than their launches would on another device.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from gramjd.aggregation.solvers.active_set import nonnegative_least_squares, root_of
from gramjd.aggregation.solvers.pivoting import pivot
from gramjd.aggregation.solvers.rounding import of_square

_REGULAR = 1e-8
_ACCURACY = 1e-10


class ConicFit:
    """Solutions for many `v` and `tau` that share `C` [m, m], with unit diagonal, and `d` [m], positive, at most 1."""

    def __init__(self, C: Tensor, d: Tensor) -> None:
        """Copy both to the CPU, in float64."""
        self.C, self.d = C.cpu().double(), d.cpu().double()
        self.A = self.C + torch.outer(self.d, self.d)

    @cached_property
    def _root(self) -> Tensor:
        return torch.cat([root_of(self.C), self.d[None]])

    @cached_property
    def _regular(self) -> bool:
        L, failed = torch.linalg.cholesky_ex(self.A)
        return not failed and float(L.diagonal().square().amin()) > _REGULAR

    def solve(self, v: Tensor, tau: float) -> Tensor:
        """`argmin {|R (x + v)|^2 + (d . x - tau)^2 : x >= 0}`, [m]; one of them where it is not unique."""
        q = self.C @ v - tau * self.d
        size = -float(q.amin())
        if size <= 0:
            return torch.zeros_like(q)
        q = q / size
        if self._regular:
            x = pivot(self.A, q[None], q[None] < 0)[0]
            y = self.A @ x + q
            if float(y.amin()) >= -_ACCURACY and float((x * y).abs().amax()) <= _ACCURACY:
                return x * size
        R = self._root
        target = torch.cat([-(R[:-1] @ v), v.new_tensor([tau])])
        return nonnegative_least_squares(R, target / size) * size

    def slope(self, free: Tensor) -> Tensor:
        """How `solve` changes with `tau` while the coefficients `free` [m] stay the positive ones, [m]."""
        p = torch.zeros_like(self.d)
        e = torch.zeros(len(self._root), 1, dtype=p.dtype)
        e[-1] = 1
        p[free] = torch.linalg.lstsq(self._root[:, free], e, driver="gelsy").solution[:, 0]
        return p


def nearest_to_zero(C: Tensor, d: Tensor) -> Tensor:
    """`argmin {x^T C x : x >= 0, d . x = 1}`, [m] in float64 on the CPU.

    With `d = 1 / |g|` and `x = |g| w` this is the shortest convex combination of gradients, scaled so that short and
    long ones are told equally well; with `d = 1`, that of their directions.

    >>> import torch
    >>> nearest_to_zero(torch.eye(2), torch.tensor([1.0, 0.5]))
    tensor([0.8000, 0.4000], dtype=torch.float64)
    """
    fit = ConicFit(C, d)
    x = fit.solve(torch.zeros_like(fit.d), 1.0)
    return x / (fit.d @ x)


def distance_to_conflict(C: Tensor, eps: float) -> float:
    """The squared length of the shortest convex combination of the gradients' directions, 0 to 1.

    It is zero where no direction decreases all losses (a Pareto-stationary point); exactly 0 is returned for what
    cannot be told from that once rounding the Gramian to `eps` has moved it.

    >>> import torch
    >>> round(distance_to_conflict(torch.eye(4), 1e-7), 12)
    0.25
    """
    x = nearest_to_zero(C, torch.ones(len(C)))
    square = x @ (C.cpu().double() @ x)
    return float(torch.where(square <= of_square(x, eps), 0.0, square))
