"""Nonnegative least squares for many rows at once, on a factor of the cosines: exact up to rounding, whatever the rank.

Per row `min |x A + b|^2` over `x >= 0`. Where `A A^T = C` is singular or close to it, to factor `C` on a subset would
lose all digits. A QR decomposition of the rows of `A` in the subset loses half as many, and none of them if it is of
`[A, d I]` with a tiny `d`: that pulls x towards where it was, by less than rounding moves `x A`. So dependent rows do
no harm, and no set of rows has to be independent.

The method is that of Lawson and Hanson, started from a guess: solve on the entries that are free, go there as far as
all of x stays nonnegative, and free what is violated once nothing is in the way. Every step lowers the objective.
Source: Lawson and Hanson, Solving least squares problems (1974), chapter 23.

Where `_nearest.c` was compiled, it does this from the other side, in the dual; rows that it leaves are done here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from gramjd.aggregation.solvers import native
from gramjd.aggregation.solvers.rounding import EPS, KNOWN
from gramjd.aggregation.solvers.subsets import of_similar_size

# The d above at first: dependent rows share what they have to give as they shared it before, to a part of 1e-8. And at
# last, where that is too much: the square then moves `x A A^T` by the rounding of x.
_PULL, _LEAST_PULL = 1e-4, EPS**0.5
_FADING = 0.7  # what is left of it after each round that is no longer bold
_SLOW = 1e-3  # the part of what was left that a step must not leave, or the pull is too much
_BOLD = 20  # rounds that free several entries at once, and go along arcs
_ROUNDS = 10  # in all: so many per unknown, and some
_SHARE = 0.3  # of the largest violation: those above it are freed together
_REGULAR = 1e-5  # the root of the least pivot, from which on a subset of the cosines is factored as it stands
_LONG, _LONG_UNEVEN = 6e9, 1e12  # operations, from which on a row after the other takes longer than all together
_UNEVEN = 1e-6
_EQUAL = 1 - 1e-6  # what differs by less does so by rounding: equal rows are treated alike
_ARC = (1.0, 0.5, 0.2, 0.1, 0.03)


def nonnegative(A: Tensor, B: Tensor, X: Tensor, room: float, size: Tensor) -> Tensor:
    """`X >= 0` [n, m] minimising `|X A + B|^2`, row by row.

    With `Y = (X A + B) A^T` it ends at `Y >= -e` and, where X is positive, `|Y| <= e`, for
    `e = room (size + sum_j X_j)`, or at most `rounding.KNOWN` times that from the compiled form.

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
    if (found := _compiled(A, B, room, size)) is not None:
        X, wrong = found
        if len(wrong):
            X[wrong] = _by_tensors(A, B[wrong], X[wrong], room, size[wrong])
        return X
    return _by_tensors(A, B, X, room, size)


def one_by_one(A: Tensor, n: int) -> bool:
    """Returns True if n rows are solved for by the compiled form: where there is one, and it does not take longer.

    The tensors here do all rows together, which is quicker for many large ones, unless their steps get stuck where the
    columns of `A` [m, r] are of very different lengths, as those of `root` are close to singular.
    """
    m, r = A.shape
    if native.FACTORED is None or A.device.type != "cpu" or not (n and m and r):
        return False
    squares = A.square().sum(0)
    uneven = float(squares.amin()) < _UNEVEN * float(squares.amax())
    return n * r * r * (3 * r + m) <= (_LONG_UNEVEN if uneven else _LONG)


def _compiled(A: Tensor, B: Tensor, room: float, size: Tensor) -> tuple[Tensor, Tensor] | None:
    """X [n, m], and the rows of it that are not the answer; None where nothing was compiled, or it would take long."""
    if not one_by_one(A, len(B)):
        return None
    X, missed = native.nearest(A.numpy(), B.numpy(), room, size.numpy())
    wrong = np.flatnonzero(~(missed <= KNOWN * room * (size.numpy() + X.sum(1))))
    X[~np.isfinite(X).all(1)] = 0
    return torch.from_numpy(X), torch.from_numpy(wrong)


def _by_tensors(A: Tensor, B: Tensor, X: Tensor, room: float, size: Tensor) -> Tensor:
    X, C = X.clone(), A @ A.mT
    never = torch.zeros_like(X, dtype=torch.bool)
    pull, before = torch.full_like(size, _PULL), torch.full_like(size, torch.inf)
    rows = torch.arange(len(X), device=X.device)
    now = _State(rows, X, torch.addmm(B, X, A), B, X > 0, never, size, pull, before)
    for k in range(_ROUNDS * len(A) + 100):
        now, go_on = _round(A, C, now, room, bold=k < _BOLD)
        X[now.rows] = now.x
        now = _State(*(values[go_on] for values in now))
        if not len(now.rows):
            break
    return X


class _State(NamedTuple):
    """What is known of the rows that are not done."""

    rows: Tensor  # [n], their numbers
    x: Tensor  # [n, m]
    u: Tensor  # [n, r], `x A + b`
    b: Tensor  # [n, r]
    free: Tensor  # [n, m], the entries to solve for
    banned: Tensor  # [n, m], those that were freed and went nowhere, since x last moved
    size: Tensor  # [n]
    pull: Tensor  # [n]
    left: Tensor  # [n], the largest entry of Y where x is free, if the last step went all the way


def _round(A: Tensor, C: Tensor, s: _State, room: float, bold: bool) -> tuple[_State, Tensor]:
    """The state after one step, and the rows [n] for which it is not the last one."""
    z = s.x + _solve(A, C, s.u, s.free, s.pull)
    x, settled = _step(A, s.b, s.x, z, s.free, bold)
    banned = s.banned & (x == s.x).all(1, keepdim=True) | (s.free & (x == 0) & (z <= 0))
    u = torch.addmm(s.b, x, A)
    y, noise = u @ A.mT, room * (s.size + x.sum(1))
    free = torch.where(settled[:, None], x > 0, s.free & ((x > 0) | (z > 0)))
    left = torch.where(free, y, 0.0).abs().amax(1)
    off = left > noise
    ready = settled & (~off | (s.pull <= _LEAST_PULL))
    outside = torch.where(free | banned, 0.0, y)
    violated = outside < -noise[:, None]
    go_on = ~ready | violated.any(1) | (off & bold)
    slow = settled & off & (left > _SLOW * s.left)
    # Many rounds are a sign of steps that are held back.
    pull = (torch.where(slow, 0.1 * s.pull, s.pull) * (1.0 if bold else _FADING)).clamp_min(_LEAST_PULL)
    most = outside.amin(1, keepdim=True) * (_SHARE if bold else _EQUAL)
    free = free | (violated & (outside <= most) & ready[:, None])
    return _State(s.rows, x, u, s.b, free, banned, s.size, pull, torch.where(settled, left, torch.inf)), go_on


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
