"""Nonnegative least squares for many rows at once, on a factor of the cosines: exact up to rounding, whatever the rank.

Per row `min |x A + b|^2` over `x >= 0`. Where `A A^T = C` is singular or close to it, to factor `C` on a subset would
lose all digits. A QR decomposition of the rows of `A` in the subset loses half as many, and none of them if it is of
`[A, d I]` with a tiny `d`: that pulls x towards where it was, by less than rounding moves `x A`. So dependent rows do
no harm, and no set of rows has to be independent.

The method is that of Lawson and Hanson, started from a guess: solve on the entries that are free, go there as far as
all of x stays nonnegative, and free what is violated once nothing is in the way. Every step lowers the objective.
Source: Lawson and Hanson, Solving least squares problems (1974), chapter 23.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gramjd.aggregation.solvers.rounding import EPS
from gramjd.aggregation.solvers.subsets import of_similar_size

# The d above at first: dependent rows share what they have to give as they shared it before, to a part of 1e-8. And at
# last, where that is too much: the square then moves `x A A^T` by the rounding of x.
_PULL, _LEAST_PULL = 1e-4, EPS**0.5
_SLOW = 1e-3  # the part of what was left that a step must not leave, or the pull is too much
_BOLD = 20  # rounds that free several entries at once, and go along arcs
_ROUNDS = 10  # in all: so many per unknown, and some
_SHARE = 0.3  # of the largest violation: those above it are freed together
_REGULAR = 1e-5  # the root of the least pivot, from which on a subset of the cosines is factored as it stands
_EQUAL = 1 - 1e-6  # what differs by less does so by rounding: equal rows are treated alike
_ARC = (1.0, 0.5, 0.2, 0.1, 0.03)


def nonnegative(A: Tensor, B: Tensor, X: Tensor, room: float, size: Tensor) -> Tensor:
    """`X >= 0` [n, m] minimising `|X A + B|^2`, row by row.

    With `Y = (X A + B) A^T` it ends at `Y >= -e` and, where X is positive, `|Y| <= e`, for
    `e = room (size + sum_j X_j)`.

    Args:
        A: [m, r] in float64, rows of about unit length.
        B: [n, r].
        X: [n, m], nonnegative: the guess.
        room: what is put down to rounding, of the size of the terms.
        size: [n], of the terms of `B`.

    >>> import torch
    >>> A, B = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double(), torch.tensor([[-1.0, 2.0]]).double()
    >>> nonnegative(A, B, torch.zeros(1, 2).double(), 1e-15, torch.ones(1).double()).sum()
    tensor(1., dtype=torch.float64)
    """
    X, C = X.clone(), A @ A.mT
    rows = torch.arange(len(X), device=X.device)
    x, b, free, banned = X, B, X > 0, torch.zeros_like(X, dtype=torch.bool)
    u, pull = torch.addmm(b, x, A), torch.full_like(size, _PULL)
    before = torch.full_like(size, torch.inf)
    for k in range(_ROUNDS * len(A) + 100):
        z = x + _solve(A, C, u, free, pull)
        new, settled = _step(A, b, x, z, free, bold=k < _BOLD)
        banned = banned & (new == x).all(1, keepdim=True) | (free & (x == 0) & (z <= 0))
        x, u = new, torch.addmm(b, new, A)
        X[rows], y = x, u @ A.mT
        free = torch.where(settled[:, None], x > 0, free & ((x > 0) | (z > 0)))
        noise = (room * (size + x.sum(1)))[:, None]
        outside = torch.where(free | banned, 0.0, y)
        violated = outside < -noise
        left = torch.where(free, y, 0.0).abs().amax(1)
        off = left > noise[:, 0]
        ready = settled & (~off | (pull <= _LEAST_PULL))
        go_on = ~ready | violated.any(1) | (off & (k < _BOLD))
        slow = settled & off & (left > _SLOW * before)
        pull, before = torch.where(slow, 0.1 * pull, pull).clamp_min(_LEAST_PULL), torch.where(settled, left, torch.inf)
        most = outside.amin(1, keepdim=True) * (_SHARE if k < _BOLD else _EQUAL)
        free = free | (violated & (outside <= most) & ready[:, None])
        state = (rows, x, u, b, free, banned, size, pull, before)
        rows, x, u, b, free, banned, size, pull, before = (t[go_on] for t in state)
        if not len(rows):
            break
    return X


def root(C: Tensor) -> Tensor:
    """A [m, r] with `A A^T = C` up to rounding, for positive semi-definite `C` [m, m] of rank r up to rounding."""
    values, vectors = torch.linalg.eigh(C)
    keep = values > len(C) * EPS * values[-1]
    return vectors[:, keep] * values[keep].sqrt()


def _step(A: Tensor, b: Tensor, x: Tensor, z: Tensor, free: Tensor, bold: bool) -> tuple[Tensor, Tensor]:
    """From x towards z as far as x stays nonnegative; and whether that is all the way [n]."""
    falling = free & (z <= 0)
    ratio = torch.where(falling, x / (x - z).clamp_min(1e-300), torch.inf)
    nearest = ratio.amin(1, keepdim=True)
    new = torch.lerp(x, z, nearest.clamp_max(1.0)).clamp_min(0)
    new = torch.where(falling & (_EQUAL * ratio <= nearest), 0.0, new)
    settled = ~falling.any(1)
    if bold and not bool(settled.all()):
        arc = torch.tensor(_ARC, dtype=x.dtype, device=x.device)[:, None, None]
        tried = torch.cat([new[None], torch.lerp(x, z, arc).clamp_min(0)])
        best = (tried @ A + b).square().sum(2).argmin(0)
        new = tried[best, torch.arange(len(x), device=x.device)]
    return new, settled


def _solve(A: Tensor, C: Tensor, u: Tensor, free: Tensor, pull: Tensor) -> Tensor:
    """Z [n, m], zero but on `free`, with `|Z A + u|^2 + pull^2 |Z|^2` as small as it can be there."""
    m, r = A.shape
    wide, flat = torch.cat([A, A.new_zeros(1, r)]), pad(C, (0, 1, 0, 1)).view(-1)
    z, y = torch.zeros(len(u), m + 1, dtype=A.dtype, device=A.device), -u @ wide.mT
    for rows, index in of_similar_size(free):
        k = index.shape[1]
        blocks = flat[(index * (m + 1))[:, :, None] + index[:, None, :]]
        blocks.diagonal(dim1=1, dim2=2).add_(index == m)
        L, failed = torch.linalg.cholesky_ex(blocks)
        good = (failed == 0) & (L.diagonal(dim1=1, dim2=2).amin(1) > _REGULAR)
        part = torch.cholesky_solve(y[rows].gather(1, index)[:, :, None], L)[:, :, 0]
        bad = (~good).nonzero()[:, 0]
        if len(bad):
            at = index[bad]
            M = torch.cat([wide[at].mT, torch.diag_embed(torch.where(at < m, pull[rows[bad], None], 1.0))], 1)
            right = pad(-u[rows[bad]], (0, k))[:, :, None]
            part[bad] = torch.linalg.lstsq(M, right, driver="gels").solution[:, :, 0]
        z[rows[:, None], index] = part
    return z[:, :m]
