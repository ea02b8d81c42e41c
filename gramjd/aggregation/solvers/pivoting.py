"""Block principal pivoting: exact multipliers from a guess of which of them are positive, many problems at once.

Per problem: `x >= 0, y = q + x A >= 0, x y = 0` with one positive definite `A` [m, m] for all. Each round solves for
the multipliers that are free, then moves every one that came out negative, and every constraint that came out
violated, to the other side. From a good guess that is one to four rounds, each for the rows that the one before left.
That may cycle; a row whose offenders stop getting fewer goes on with steps that lower the objective each time, which
cannot.
Source: Judice and Pires, A block principal pivoting algorithm for large-scale strictly monotone linear
complementarity problems (1994); for the descent, Bertsekas, Projected Newton methods for optimization problems with
simple constraints (1982), and Nocedal and Wright, Numerical optimization (2006), section 16.5.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gramjd.aggregation.solvers import native
from gramjd.aggregation.solvers.subsets import shared_view, solve_general, solve_on

_SLACK = 1e-11
_PATIENCE = 3
_ROUNDS = 60
_ARC = (1.0, 0.5, 0.2, 0.1, 0.03, 0.01)


def pivot(
    A: Tensor, Q: Tensor, free: Tensor, tol: float = 0.0, smooth: bool = False, start: Tensor | None = None
) -> Tensor:
    """`X >= 0` [r, m] for all rows of `Q` [r, m], from the guess `free` [r, m] of where X is positive.

    A row whose offenders are all smaller than `tol` is not improved any further. A row that takes more than `_ROUNDS`
    rounds comes back as good as it got: the caller has to look. `smooth` says that conjugate gradients are quick on
    `A`; `start` [r, m] is a nonnegative X from which descent begins, where that is what it takes.
    """
    if A.device.type == "cpu" and len(Q) and native.serves(len(A)):
        X, rows = _compiled(A, Q, free, tol)
    else:
        X, rows = _exchange_blocks(A, Q, free, tol, smooth)
        X = X.clamp_min(0)
    if not len(rows):
        return X
    q, x = Q[rows], (X if start is None else start)[rows]
    y = torch.addmm(q, x, A)
    for _ in range(_ROUNDS):
        x, y = _descend(A, q, x, y)
        X[rows] = x
        size = _SLACK * (1 + x.sum(1, keepdim=True))
        go_on = ~((y >= -size) & ((x == 0) | (y <= 10 * size))).all(1)
        rows, q, x, y = rows[go_on], q[go_on], x[go_on], y[go_on]
        if not len(rows):
            break
    return X


def _compiled(A: Tensor, Q: Tensor, free: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """X [r, m], and the rows that have to be found otherwise."""
    found = native.exchange(A.numpy(), Q.numpy(), free.numpy(), tol)
    return torch.from_numpy(found.X), torch.from_numpy(np.isinf(found.missed).nonzero()[0])


def _exchange_blocks(A: Tensor, Q: Tensor, free: Tensor, tol: float, smooth: bool) -> tuple[Tensor, Tensor]:
    """Move all offenders at once, while that helps. Returns X (signed), and the rows for which it stopped helping."""
    X = torch.zeros_like(Q)
    rows = torch.arange(len(Q), device=Q.device)
    view = shared_view(A, Q, free)
    shared, K, q = view or (torch.zeros_like(free[0]), A, Q)
    moved = free ^ shared
    fewest = torch.full_like(rows, A.shape[0] + 1)
    patience = torch.full_like(rows, _PATIENCE)
    given_up = [rows[:0]]
    while len(rows):
        z = solve_general(K, -q, moved) if view else solve_on(K, -q, moved, smooth)
        signed = torch.where(moved, z, torch.addmm(q, z, K))
        X[rows] = torch.where(moved ^ shared, signed, 0.0)
        offends = signed < -_SLACK * (1 + signed.abs().amax(1, keepdim=True))
        count = offends.sum(1)
        if not bool(count.any()):
            break
        patience = torch.where(count < fewest, _PATIENCE, patience - 1)
        fewest = torch.minimum(count, fewest)
        go_on = (count > 0) & ~(signed.amin(1) >= -tol)
        hopeless = go_on & ((patience < 0) | ~signed.isfinite().all(1))
        given_up.append(rows[hopeless])
        keep = (go_on & ~hopeless).nonzero()[:, 0]
        rows, q, moved = rows[keep], q[keep], (moved ^ offends)[keep]
        fewest, patience = fewest[keep], patience[keep]
    return X, torch.cat(given_up)


def _descend(A: Tensor, q: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One step that lowers the objective: projected Newton as far along its arc as serves, else a careful one.

    Violated constraints join once the multipliers there are have settled; from a guess that is good but not exact,
    to let all in at once would free far too many.
    """
    size = _SLACK * (1 + x.sum(1, keepdim=True))
    support = x > 0
    settled = torch.where(support, y.abs(), 0.0).amax(1, keepdim=True) <= 10 * size
    free = support | (settled & (y < -size))
    arc = torch.tensor(_ARC, dtype=x.dtype, device=x.device)[:, None, None]
    tried = torch.lerp(x, solve_on(A, -q, free), arc).clamp_min(0)
    tried_y = q + tried @ A
    values, best = (tried * (q + tried_y)).sum(2).min(0)
    row = torch.arange(len(x), device=x.device)
    new, new_y = tried[best, row], tried_y[best, row]
    rounding = 1e-14 * (1 + x.sum(1))
    worse = (~(values < (x * (q + y)).sum(1) - rounding)).nonzero()[:, 0]
    if len(worse):
        new[worse] = _careful(A, q[worse], x[worse], y[worse], settled[worse])
        new_y[worse] = torch.addmm(q[worse], new[worse], A)
    return new, new_y


def _careful(A: Tensor, q: Tensor, x: Tensor, y: Tensor, settled: Tensor) -> Tensor:
    """One step of the textbook active-set method: it never raises the objective, and finitely many end it.

    Towards the solution on the support of `x` (and the worst violator, once that solution is reached), as far as
    the first multiplier that becomes zero.
    """
    size = _SLACK * (1 + x.sum(1, keepdim=True))
    support = x > 0
    worst = torch.zeros_like(support).scatter_(1, torch.where(support, torch.inf, y).argmin(1, keepdim=True), True)
    free = support | (worst & settled & (y < -size))
    target = solve_on(A, -q, free)
    falling = support & (target <= 0)
    ratio = torch.where(falling, x / (x - target).clamp_min(1e-300), torch.inf)
    nearest = ratio.amin(1, keepdim=True)
    new = torch.lerp(x, target, nearest.clamp_max(1.0)).clamp_min(0)
    return torch.where(falling & (ratio <= nearest), 0.0, new)
