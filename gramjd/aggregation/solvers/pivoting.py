"""Block principal pivoting: exact multipliers from a guess of which of them are positive, many problems at once.

Per problem: `x >= 0, y = q + x A >= 0, x y = 0` with one positive definite `A` [m, m] for all. Each round solves for
the multipliers that are free, then moves every one that came out negative, and every constraint that came out
violated, to the other side. From a good guess that is one to three rounds. That may cycle; a row whose offenders stop
getting fewer goes on with steps that lower the objective each time, which cannot.
Source: Judice and Pires, A block principal pivoting algorithm for large-scale strictly monotone linear
complementarity problems (1994); for the descent, Bertsekas, Projected Newton methods for optimization problems with
simple constraints (1982), and Nocedal and Wright, Numerical optimization (2006), section 16.5.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# (A, b, free, start) -> x, with x A = b on the free entries and x = 0 elsewhere; each but A is [r, m].
FreeSolver = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

_SLACK = 1e-11
_PATIENCE = 3
_CHUNK_ELEMENTS = 2**24  # 128 MiB of float64 in one batch of factorisations


def pivot(A: Tensor, Q: Tensor, start: Tensor, solve: FreeSolver, max_rounds: int) -> Tensor:
    """`X >= 0` [r, m] for all rows of `Q` [r, m], from the guess `start` [r, m], of which the signs matter most.

    A row that takes more than `max_rounds` comes back as good as it got: the caller has to look.
    """
    X, rows = _exchange_blocks(A, Q, start, solve)
    X = X.clamp_min(0)
    q, x = Q[rows], X[rows]
    y = torch.addmm(q, x, A)
    for _ in range(max_rounds):
        if not len(rows):
            break
        x, y = _descend(A, q, x, y, solve)
        X[rows] = x
        size = _SLACK * (1 + x.sum(1, keepdim=True))
        go_on = ~((y >= -size) & ((x == 0) | (y <= 10 * size))).all(1)
        rows, q, x, y = rows[go_on], q[go_on], x[go_on], y[go_on]
    return X


def _exchange_blocks(A: Tensor, Q: Tensor, start: Tensor, solve: FreeSolver) -> tuple[Tensor, Tensor]:
    """Move all offenders at once, while that helps. Returns X (signed), and the rows for which it stopped helping."""
    X = start.clone()
    rows = torch.arange(len(Q), device=Q.device)
    q, free = Q, start > 0
    fewest = torch.full_like(rows, A.shape[0] + 1)
    patience = torch.full_like(rows, _PATIENCE)
    given_up = [rows[:0]]
    while len(rows):
        x = solve(A, -q, free, X[rows])
        X[rows] = x
        y = torch.addmm(q, x, A)
        offends = torch.where(free, x, y) < -_SLACK * (1 + x.abs().amax(1, keepdim=True))
        count = offends.sum(1)
        patience = torch.where(count < fewest, _PATIENCE, patience - 1)
        go_on = count > 0
        if not bool(go_on.any()):
            break
        fewest = torch.minimum(count, fewest)
        hopeless = go_on & ((patience < 0) | ~x.isfinite().all(1))
        go_on &= ~hopeless
        given_up.append(rows[hopeless])
        rows, q, free = rows[go_on], q[go_on], (free ^ offends)[go_on]
        fewest, patience = fewest[go_on], patience[go_on]
    return X, torch.cat(given_up)


def _descend(A: Tensor, q: Tensor, x: Tensor, y: Tensor, solve: FreeSolver) -> tuple[Tensor, Tensor]:
    """One step that lowers the objective: a block move if that does it (projected Newton), else a careful one."""
    free = (x > 0) | (y < -_SLACK * (1 + x.sum(1, keepdim=True)))
    new = solve(A, -q, free, x).clamp_min(0)
    new_y = torch.addmm(q, new, A)
    rounding = 1e-14 * (1 + x.sum(1))
    worse = (~((new * (q + new_y)).sum(1) < (x * (q + y)).sum(1) - rounding)).nonzero()[:, 0]
    if len(worse):
        new[worse] = _careful(A, q[worse], x[worse], y[worse], solve)
        new_y[worse] = torch.addmm(q[worse], new[worse], A)
    return new, new_y


def _careful(A: Tensor, q: Tensor, x: Tensor, y: Tensor, solve: FreeSolver) -> Tensor:
    """One step of the textbook active-set method: it never raises the objective, and finitely many end it.

    Towards the solution on the support of `x` (and the worst violator, once that solution is reached), as far as
    the first multiplier that becomes zero.
    """
    size = _SLACK * (1 + x.sum(1, keepdim=True))
    support = x > 0
    settled = torch.where(support, y.abs(), 0.0).amax(1, keepdim=True) <= 10 * size
    worst = torch.zeros_like(support).scatter_(1, torch.where(support, torch.inf, y).argmin(1, keepdim=True), True)
    free = support | (worst & settled & (y < -size))
    target = solve(A, -q, free, x)
    falling = support & (target <= 0)
    ratio = torch.where(falling, x / (x - target).clamp_min(1e-300), torch.inf)
    nearest = ratio.amin(1, keepdim=True)
    new = torch.lerp(x, target, nearest.clamp_max(1.0)).clamp_min(0)
    return torch.where(falling & (ratio <= nearest), 0.0, new)


def by_cholesky(A: Tensor, b: Tensor, free: Tensor, start: Tensor) -> Tensor:
    """FreeSolver that factors the free part of `A` for every row: best for small m and for ill-conditioned `A`."""
    m = A.shape[0]
    if m <= 32:  # below this, gathering costs more than the factorisation it shrinks
        return _factor_and_solve(torch.where(free[:, :, None] & free[:, None, :], A, 0.0), b, free)
    k = max(int(free.sum(1).amax()), 1)
    order = torch.argsort(free, dim=1, descending=True, stable=True)[:, :k]
    x = torch.zeros_like(b)
    for part in torch.arange(len(b), device=b.device).split(max(_CHUNK_ELEMENTS // (k * k), 1)):
        index = order[part]
        chosen = free[part].gather(1, index)
        block = A[index[:, :, None], index[:, None, :]]
        block.mul_(chosen[:, :, None] & chosen[:, None, :])
        x[part] = torch.zeros_like(b[part]).scatter_(
            1, index, _factor_and_solve(block, b[part].gather(1, index), chosen)
        )
    return x


def _factor_and_solve(blocks: Tensor, b: Tensor, keep: Tensor) -> Tensor:
    """x with `x block = b` on `keep`, per row; the rest of each block is zero, and becomes the identity."""
    blocks.diagonal(dim1=1, dim2=2).add_(~keep)
    L, _ = torch.linalg.cholesky_ex(blocks)
    return torch.cholesky_solve((b * keep)[:, :, None], L)[:, :, 0]


def by_conjugate_gradients(A: Tensor, b: Tensor, free: Tensor, start: Tensor) -> Tensor:
    """FreeSolver of one product `[r, m] x [m, m]` an iteration: best for large m, unless `A` is ill-conditioned.

    It starts from `start` and stops, converged or not, after 80 iterations: the caller checks what it gets.
    """
    x = start * free
    r = torch.addmm(b, x, A, alpha=-1) * free
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


def by_either(A: Tensor, b: Tensor, free: Tensor, start: Tensor) -> Tensor:
    """FreeSolver that lets conjugate gradients try, and factors for the rows on which they got stuck."""
    if 2 * len(b) < A.shape[0]:
        return by_cholesky(A, b, free, start)
    x = by_conjugate_gradients(A, b, free, start)
    off = (torch.addmm(b, x, A, alpha=-1) * free).abs().amax(1)
    stuck = (~(off <= _SLACK * (1 + x.abs().amax(1)))).nonzero()[:, 0]
    if len(stuck):
        x[stuck] = by_cholesky(A, b[stuck], free[stuck], start)
    return x
