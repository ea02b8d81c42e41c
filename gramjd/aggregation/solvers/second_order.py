"""The least of a linear function plus a length over a simplex, by an interior-point method: the core of CAGrad.

`min q . s + c |R s|` over `s >= 0, d . s = 1`, for cosines `C = R^T R`. With `r >= |R s|`, a second-order cone, for
the length, this is a linear program over cones, and Nesterov and Todd's scaling makes of it the method that
`interior` is: predictor and corrector with one factorisation of `C` plus a diagonal a step.

A vector `(t, R^T x)` of the cone's space is kept as [2, m + 1], `(t, x)` above `(t, C x)`: the inner product of two is
that of the upper row of one with the lower row of the other, and nothing else is asked of R.
Source: Nesterov and Todd, Self-scaled barriers and interior-point methods for convex programming (1997); the formulas
are those of Vandenberghe, The CVXOPT linear and quadratic cone program solvers (2010), sections 4 and 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_STEPS = 30
_BACK_OFF = 0.99  # the part of the way to the boundary that a step may go
_DAMPING = 1e-15  # on the unit diagonal of what is factored alone
_DONE = 1e-13  # the gap, in units of c |R s|, at which all digits are there that this method can find


class _Point(NamedTuple):
    """`a = (r, R^T s)` and `b = (c, -R^T z)` in the cone, s and the slacks `w = q + C z - lam d` positive."""

    a: Tensor  # [2, m + 1]
    b: Tensor  # [2, m + 1]
    w: Tensor  # [m]
    lam: Tensor  # []

    @property
    def s(self) -> Tensor:
        return self.a[0, 1:]

    @property
    def gap(self) -> Tensor:
        """The mean of the m products `s w` and of `a . b`."""
        return (self.s @ self.w + _dot(self.a, self.b)) / self.a.shape[1]

    def plus(self, step: _Point, f: Tensor) -> _Point:
        return _Point(*(mine + f * more for mine, more in zip(self, step, strict=True)))


Direction = Callable[[Tensor, Tensor], tuple[_Point, Tensor]]


class _Scaling(NamedTuple):
    """Nesterov and Todd's `W = eta (n n^T - J)` with `W b = W^-1 a`, for `J = diag(1, -1, ..., -1)`.

    `W^2 = eta^2 (2 unit unit^T - J)`.
    """

    unit: Tensor  # [2, m + 1]
    n: Tensor  # [2, m + 1]
    eta: Tensor  # []
    J: Tensor  # [m + 1]

    def times(self, v: Tensor) -> Tensor:
        return self.eta * (self.n * _dot(self.n, v) - self.J * v)

    def divide(self, v: Tensor) -> Tensor:
        n = self.J * self.n
        return (n * _dot(n, v) - self.J * v) / self.eta


def least_with_length(C: Tensor, q: Tensor, d: Tensor, c: float, look: bool) -> tuple[Tensor, Tensor]:
    """s [m] that minimises `q . s + c |R s|` over `s >= 0, d . s = 1`, for c > 0; and the entries that are not zero.

    Where there is no such s (|R s| can be 0), any.

    >>> import torch
    >>> q, d = torch.tensor([1.0, 1.0, 9.0]).double(), torch.ones(3).double()
    >>> s, positive = least_with_length(torch.eye(3).double(), q, d, 0.5, look=True)
    >>> s.round(decimals=6), positive
    (tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64), tensor([ True,  True, False]))
    """
    J = torch.cat([q.new_ones(1), q.new_full((len(q),), -1.0)])
    point = _start(C, q, d, c)
    for _ in range(_STEPS):
        a, b, w, _ = point
        gap = point.gap
        if look and bool(gap * len(J) <= _DONE * c * a[0, 0]):
            break
        W = _scaling(a, b, J)
        step = _newton(C, q, d, point, W)
        ahead, reach = step(-point.s * w, -b)
        aim = gap * (point.plus(ahead, reach).gap / gap).clamp(0, 1) ** 3
        central = aim / _dot(J * a, a) * (J * a)
        ahead, reach = step(aim - point.s * w - ahead.s * ahead.w, central - b - _correction(W, b, ahead))
        new = point.plus(ahead, _BACK_OFF * reach)
        usable = (reach > 0) & (_dot(J * new.a, new.a) > 0) & (_dot(J * new.b, new.b) > 0) & new.w.isfinite().all()
        if look and not usable:
            break
        point = _Point(*(torch.where(usable, mine, old) for mine, old in zip(new, point, strict=True)))
    return point.s, point.s > point.w


def _start(C: Tensor, q: Tensor, d: Tensor, c: float) -> _Point:
    """A point that satisfies the linear equations, with z = 0 and all products `s w` equal."""
    lam = (q / d).amin() - (1 + c)
    w = q - lam * d
    s = w.reciprocal()
    s = s / (s @ d)
    y = C @ s
    r = torch.maximum((s @ w) / (len(q) * c), 2 * (s @ y).sqrt())
    a = torch.cat([r.expand(2, 1), torch.stack([s, y])], 1)
    return _Point(a, torch.cat([torch.full_like(a[:, :1], c), torch.zeros_like(a[:, 1:])], 1), w, lam)


def _scaling(a: Tensor, b: Tensor, J: Tensor) -> _Scaling:
    root_a, root_b = _dot(J * a, a).sqrt(), _dot(J * b, b).sqrt()
    unit = (a / root_a + J * b / root_b) / (2 + 2 * _dot(a, b) / (root_a * root_b)).sqrt()
    n = unit.clone()
    n[:, 0] += 1
    return _Scaling(unit, n / n[0, 0].sqrt(), (root_a / root_b).sqrt(), J)


def _newton(C: Tensor, q: Tensor, d: Tensor, point: _Point, W: _Scaling) -> Direction:
    """Factor, and return the function that solves for a direction and says how far one can go along it.

    Its arguments are the right-hand sides of `w ds + s dw = k` and of `W^-2 da + db = h`; the linear equations are made
    to hold.
    """
    a, b, w, lam = point
    s, square, top, u = point.s, W.eta**2, W.unit[0, 0], W.unit[1, 1:]
    kappa = 2 / (2 * top**2 - 1)
    solve, failed = _factored(C + torch.diag(square * w / s))
    along_u, along_d = solve(torch.stack([u, d], 1)).unbind(1)
    # Two unknowns beside ds: what it has along u, and the change of lam.
    uu, ud, du, dd = 1 - kappa * (u @ along_u), -(u @ along_d), kappa * (d @ along_u), d @ along_d
    det = uu * dd - ud * du
    off_w, off_sum = w - (q - b[1, 1:] - lam * d), 1 - d @ s

    def direction(k: Tensor, h: Tensor) -> tuple[_Point, Tensor]:
        first = solve((square * (k / s + off_w + h[1, 1:] + kappa * top * h[0, 0] * u))[:, None])[:, 0]
        g, e = u @ first, off_sum - d @ first
        y, dlam = (g * dd - ud * e) / det, (uu * e - du * g) / det
        ds = first + kappa * y * along_u + dlam * along_d
        dr = (square * h[0, 0] + 2 * top * y) * kappa / 2
        da = torch.cat([dr.expand(2, 1), torch.stack([ds, C @ ds])], 1)
        db = h - W.divide(W.divide(da))
        db[:, 0] = 0
        dw = (k - w * ds) / s
        v, dv = torch.cat([s, w]), torch.cat([ds, dw])
        reach = torch.where(dv < 0, -v / dv, torch.inf).amin().clamp_max(1.0)
        reach = torch.minimum(reach, torch.minimum(_edge(a, da, W.J), _edge(b, db, W.J)))
        return _Point(da, db, dw, dlam / square), torch.where(failed > 0, 0.0, reach)

    return direction


def _factored(M: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The function that solves with `M` [m, m], and whether it could not be factored, []."""
    size = M.diagonal().rsqrt()[:, None]
    M = M * size * size.mT
    M.diagonal().add_(_DAMPING)
    L, failed = torch.linalg.cholesky_ex(M)
    return lambda B: torch.cholesky_solve(B * size, L) * size, failed


def _correction(W: _Scaling, b: Tensor, ahead: _Point) -> Tensor:
    """What the Jordan product of a and b has beyond its linear part, along `ahead`: what `ds dw` is to `s w`."""
    at, x, y = W.times(b), W.divide(ahead.a), W.times(ahead.b)
    product = x[0, 0] * y + y[0, 0] * x
    product[:, 0] = _dot(x, y)
    t = _dot(W.J * at, product) / _dot(W.J * at, at)
    divided = (product - t * at) / at[0, 0]
    divided[:, 0] = t
    return W.divide(divided)


def _edge(v: Tensor, dv: Tensor, J: Tensor) -> Tensor:
    """The least f > 0 for which `v + f dv` is on the boundary of the cone, [], infinity if none is."""
    Jv = J * v
    size, half, square = _dot(Jv, v), _dot(Jv, dv), _dot(J * dv, dv)
    root = half * half - size * square
    below = root.clamp_min(0).sqrt() - half
    return torch.where((root >= 0) & (below > 0), size / below, torch.inf)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] @ b[1]
