"""The compiled form of block principal pivoting, for problems that are too small to be worth a tensor operation.

`_exchange.c` is built with the package where there is a C compiler that knows GNU vectors. Everything works without it,
by the tensors of `pivoting`; at 32 losses that takes about ten times as long.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST = 64  # losses; the C file has the same number
_SWEEPS = 4  # of coordinate descent: together they cost about as much as the round that they save


def _load() -> Any:
    try:
        return import_module("gramjd.aggregation.solvers._exchange")
    except ImportError:
        return None


COMPILED = _load()


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
