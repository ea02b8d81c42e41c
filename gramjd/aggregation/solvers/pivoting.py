"""Block principal pivoting: exact multipliers from a guess of which of them are positive, many problems at once.

Per problem: `x >= 0, y = q + x A >= 0, x y = 0` with one positive definite `A` [m, m] for all. Each round solves for
the multipliers that are free, then moves every one that came out negative, and every constraint that came out
violated, to the other side. From a good guess that is one to four rounds, each for the rows that the one before left.
That may cycle; a row whose offenders stop
getting fewer goes on with steps that lower the objective each time, which cannot.
Source: Judice and Pires, A block principal pivoting algorithm for large-scale strictly monotone linear
complementarity problems (1994); for the descent, Bertsekas, Projected Newton methods for optimization problems with
simple constraints (1982), and Nocedal and Wright, Numerical optimization (2006), section 16.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_SLACK = 1e-11
_PATIENCE = 3
_ROUNDS = 60
_CHUNK_ELEMENTS = 2**22  # 32 MiB of float64 in one batch of factorisations
_MOSTLY_FREE = 0.6
_PRODUCTS_FROM = 48
_GATHER_FROM = 40  # below this m, gathering costs more than the factorisation it shrinks


@dataclass(frozen=True)
class Shortcuts:
    """What is known about `A` that makes rounds quicker: its inverse, and whether conjugate gradients will do."""

    inverse: Tensor | None = None
    smooth: bool = False


_NONE = Shortcuts()


def pivot(A: Tensor, Q: Tensor, free: Tensor, tol: float = 0.0, known: Shortcuts = _NONE) -> Tensor:
    """`X >= 0` [r, m] for all rows of `Q` [r, m], from the guess `free` [r, m] of where X is positive.

    A row whose offenders are all smaller than `tol` is not improved any further. A row that takes more than `_ROUNDS`
    rounds comes back as good as it got: the caller has to look.
    """
    X, rows = _exchange_blocks(A, Q, free, tol, known)
    X = X.clamp_min(0)
    q, x = Q[rows], X[rows]
    y = torch.addmm(q, x, A)
    for _ in range(_ROUNDS):
        if not len(rows):
            break
        x, y = _descend(A, q, x, y, known)
        X[rows] = x
        size = _SLACK * (1 + x.sum(1, keepdim=True))
        go_on = ~((y >= -size) & ((x == 0) | (y <= 10 * size))).all(1)
        rows, q, x, y = rows[go_on], q[go_on], x[go_on], y[go_on]
    return X


def _exchange_blocks(A: Tensor, Q: Tensor, free: Tensor, tol: float, known: Shortcuts) -> tuple[Tensor, Tensor]:
    """Move all offenders at once, while that helps. Returns X (signed), and the rows for which it stopped helping."""
    X = torch.zeros_like(Q)
    rows = torch.arange(len(Q), device=Q.device)
    q = Q
    fewest = torch.full_like(rows, A.shape[0] + 1)
    patience = torch.full_like(rows, _PATIENCE)
    given_up = [rows[:0]]
    while len(rows):
        x = solve_free(A, -q, free, known)
        X[rows] = x
        signed = torch.where(free, x, torch.addmm(q, x, A))
        offends = signed < -_SLACK * (1 + x.abs().amax(1, keepdim=True))
        count = offends.sum(1)
        patience = torch.where(count < fewest, _PATIENCE, patience - 1)
        fewest = torch.minimum(count, fewest)
        go_on = (count > 0) & ~(signed.amin(1) >= -tol)
        hopeless = go_on & ((patience < 0) | ~x.isfinite().all(1))
        given_up.append(rows[hopeless])
        keep = (go_on & ~hopeless).nonzero()[:, 0]
        rows, q, free = rows[keep], q[keep], (free ^ offends)[keep]
        fewest, patience = fewest[keep], patience[keep]
    return X, torch.cat(given_up)


def _descend(A: Tensor, q: Tensor, x: Tensor, y: Tensor, known: Shortcuts) -> tuple[Tensor, Tensor]:
    """One step that lowers the objective: a block move if that does it (projected Newton), else a careful one."""
    free = (x > 0) | (y < -_SLACK * (1 + x.sum(1, keepdim=True)))
    new = solve_free(A, -q, free, known).clamp_min(0)
    new_y = torch.addmm(q, new, A)
    rounding = 1e-14 * (1 + x.sum(1))
    worse = (~((new * (q + new_y)).sum(1) < (x * (q + y)).sum(1) - rounding)).nonzero()[:, 0]
    if len(worse):
        new[worse] = _careful(A, q[worse], x[worse], y[worse], known)
        new_y[worse] = torch.addmm(q[worse], new[worse], A)
    return new, new_y


def _careful(A: Tensor, q: Tensor, x: Tensor, y: Tensor, known: Shortcuts) -> Tensor:
    """One step of the textbook active-set method: it never raises the objective, and finitely many end it.

    Towards the solution on the support of `x` (and the worst violator, once that solution is reached), as far as
    the first multiplier that becomes zero.
    """
    size = _SLACK * (1 + x.sum(1, keepdim=True))
    support = x > 0
    settled = torch.where(support, y.abs(), 0.0).amax(1, keepdim=True) <= 10 * size
    worst = torch.zeros_like(support).scatter_(1, torch.where(support, torch.inf, y).argmin(1, keepdim=True), True)
    free = support | (worst & settled & (y < -size))
    target = solve_free(A, -q, free, known)
    falling = support & (target <= 0)
    ratio = torch.where(falling, x / (x - target).clamp_min(1e-300), torch.inf)
    nearest = ratio.amin(1, keepdim=True)
    new = torch.lerp(x, target, nearest.clamp_max(1.0)).clamp_min(0)
    return torch.where(falling & (ratio <= nearest), 0.0, new)


def solve_free(A: Tensor, b: Tensor, free: Tensor, known: Shortcuts = _NONE) -> Tensor:
    """x [r, m] with `x A = b` on the entries `free` [r, m] and zero elsewhere."""
    m = len(A)
    if known.inverse is not None and float(free.double().mean()) > _MOSTLY_FREE:
        whole = b @ known.inverse
        return torch.where(free, whole - _by_cholesky(known.inverse, whole, ~free) @ known.inverse, 0.0)
    if not known.smooth or m < _PRODUCTS_FROM or 2 * len(b) < m:
        return _by_cholesky(A, b, free)
    x = _by_conjugate_gradients(A, b, free)
    off = (torch.addmm(b, x, A, alpha=-1) * free).abs().amax(1)
    stuck = (~(off <= _SLACK * (1 + x.abs().amax(1)))).nonzero()[:, 0]
    if len(stuck):
        x[stuck] = _by_cholesky(A, b[stuck], free[stuck])
    return x


def _by_conjugate_gradients(A: Tensor, b: Tensor, free: Tensor) -> Tensor:
    """One product `[r, m] x [m, m]` an iteration; stops, converged or not, after 80: the caller checks what it gets."""
    x = torch.zeros_like(b)
    r = b * free
    p = r
    rho = r.square().sum(1, keepdim=True)
    first = float(rho.amax())
    for k in range(80):
        if k % 8 == 0:
            worst = float(rho.amax())
            if worst < 1e-26 or (k == 40 and worst > 1e-8 * first):
                break
        Ap = p @ A * free
        # A row that has converged gets steps of zero instead of 0 / 0.
        step = rho / (p * Ap).sum(1, keepdim=True).clamp_min(1e-300)
        x = x + step * p
        r = r - step * Ap
        rho, previous = r.square().sum(1, keepdim=True), rho
        p = torch.addcmul(r, p, rho / previous.clamp_min(1e-300))
    return x


def _by_cholesky(A: Tensor, b: Tensor, free: Tensor) -> Tensor:
    """A factorisation for every row."""
    if len(A) < _GATHER_FROM:
        blocks = torch.where(free[:, :, None] & free[:, None, :], A, 0.0)
        blocks.diagonal(dim1=1, dim2=2).add_(~free)
        return _solve(blocks, torch.where(free, b, 0.0))
    x = torch.zeros_like(b)
    for rows, k in _of_similar_size(free.sum(1)):
        index = torch.argsort(free[rows], dim=1, descending=True, stable=True)[:, :k]
        chosen = free[rows].gather(1, index)
        blocks = A[index[:, :, None], index[:, None, :]]
        blocks.mul_(chosen[:, :, None]).mul_(chosen[:, None, :]).diagonal(dim1=1, dim2=2).add_(~chosen)
        part = _solve(blocks, b[rows].gather(1, index) * chosen)
        x[rows] = torch.zeros_like(x[rows]).scatter_(1, index, part)
    return x


def _of_similar_size(sizes: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Batches of rows whose free sets differ little in size, with the largest size: what is padded is factored too."""
    order = torch.argsort(sizes)
    ascending = sizes[order].tolist()
    start = 0
    while start < len(ascending):
        most = max(int(1.2 * ascending[start]), ascending[start] + 16)
        end = start + 1
        while end < len(ascending) and ascending[end] <= most and (end - start) * most * most < _CHUNK_ELEMENTS:
            end += 1
        yield order[start:end], max(ascending[end - 1], 1)
        start = end


def _solve(blocks: Tensor, b: Tensor) -> Tensor:
    L, _ = torch.linalg.cholesky_ex(blocks)
    return torch.cholesky_solve(b[:, :, None], L)[:, :, 0]
