"""The compiled solvers: for what is too small to be worth a tensor operation, or takes one step after the other.

`_exchange.c` and `_nearest.c` are built with the package where there is a C compiler that knows GNU vectors. Everything
works without them, by the tensors of `pivoting` and `nonnegative`: ten times as long at 32 losses, and up to a hundred
times for cosines that are close to singular.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST = 64  # losses; the C file has the same number
_SWEEPS = 4  # of coordinate descent: together they cost about as much as the round that they save


def _load(name: str) -> Any:
    try:
        return import_module(f"gramjd.aggregation.solvers.{name}")
    except ImportError:
        return None


COMPILED, FACTORED = _load("_exchange"), _load("_nearest")


class Exchanged(NamedTuple):
    """Multipliers `X` [r, m], and by how much `y >= 0`, and 0 where x is positive, is missed [r]: inf without an x."""

    X: NDArray[np.float64]
    missed: NDArray[np.float64]


def serves(m: int) -> bool:
    """Returns True if `exchange` can be called for m losses."""
    return COMPILED is not None and 0 < m <= MOST


def exchange(
    A: NDArray[np.float64], Q: NDArray[np.float64], free: NDArray[np.bool_] | None = None, tol: float = 0.0
) -> Exchanged:
    """`x >= 0, y = q + x A >= 0, x y = 0` for all rows of `Q` [r, m]: as `pivoting.pivot`, without its descent.

    Args:
        A: [m, m] in float64, positive definite and symmetric.
        Q: [r, m] in float64, r above 0.
        free: [r, m], a guess of where x is positive; None for one by coordinate descent.
        tol: a row whose offenders are all smaller is not improved any further.
    """
    A, Q = np.ascontiguousarray(A), np.ascontiguousarray(Q)
    start = np.zeros(Q.shape, np.bool_) if free is None else free.copy()
    X, missed = np.empty(Q.shape), np.empty(len(Q))
    COMPILED.exchange(A, Q, start, X, missed, tol, _SWEEPS if free is None else 0)
    return Exchanged(X, missed)


def nearest(A: NDArray[np.float64], B: NDArray[np.float64], room: float, size: NDArray[np.float64]) -> Exchanged:
    """`X >= 0` minimising `|X A + B|^2` row by row: as `nonnegative.nonnegative`, from nothing.

    Which of several equal rows of `A` it takes depends on their order; they share it evenly in what is returned.

    Args:
        A: [m, r] in float64, rows of about unit length, m and r above 0.
        B: [n, r] in float64, n above 0.
        room: what is put down to rounding, of the size of the terms.
        size: [n], of the terms of `B`.
    """
    X, missed = np.empty((len(B), len(A))), np.empty(len(B))
    FACTORED.nearest(*map(np.ascontiguousarray, (A, B, size)), X, missed, room)
    return Exchanged(_evenly(A, X, room), missed)


def _evenly(A: NDArray[np.float64], X: NDArray[np.float64], room: float) -> NDArray[np.float64]:
    """X [n, m] with the mean over each set of equal rows of `A` [m, r], which moves `X A A^T` by rounding only."""
    C = A @ A.T
    # Equal rows are neighbours once sorted by any one number that each row of C has.
    order = np.argsort(C @ np.sqrt(2.0 + np.arange(len(A))), kind="stable")
    other = np.abs(np.diff(C[order], axis=0)).max(1) > room
    if other.all():
        return X
    which = np.empty(len(A), np.int64)
    which[order] = np.concatenate([[0], np.cumsum(other)])
    same = (which[:, None] == which).astype(np.float64)
    return X @ (same / same.sum(1, keepdims=True))
