"""Solutions of small problems in exact rational arithmetic, and what rounding a Gramian does to them."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import chain, combinations

import torch
from torch import Tensor

Vector = list[Fraction]
Matrix = list[Vector]


def exact(values: Tensor) -> list:
    """A tensor of floats as nested lists of fractions."""
    return [exact(v) if v.ndim else Fraction(v.item()) for v in values.double()]


def times(G: Matrix, v: Vector) -> Vector:
    return [dot(row, v) for row in G]


def dot(a: Vector, b: Vector) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def solve(G: Matrix, b: Vector, free: Sequence[int]) -> Vector | None:
    """x with `G x = b` on `free` and zero elsewhere; None unless G is positive definite there."""
    rows = [[G[i][j] for j in free] + [b[i]] for i in free]
    for k in range(len(rows)):
        if rows[k][k] <= 0:
            return None
        for i in range(k + 1, len(rows)):
            f = rows[i][k] / rows[k][k]
            rows[i] = [x - f * y for x, y in zip(rows[i], rows[k], strict=True)]
    x = [Fraction(0)] * len(b)
    for k in reversed(range(len(rows))):
        known = sum((rows[k][j] * x[free[j]] for j in range(k + 1, len(rows))), Fraction(0))
        x[free[k]] = (rows[k][-1] - known) / rows[k][k]
    return x


def projection(G: Matrix, u: Vector) -> Vector | None:
    """`argmin {v^T G v : v >= u}` by trying all sets of what binds; None unless G is positive definite."""
    q = times(G, u)
    for free in _subsets(len(u)):
        mu = solve(G, [-x for x in q], free)
        if mu is None:
            return None
        if min(mu) >= 0 and min(y + x for y, x in zip(times(G, mu), q, strict=True)) >= 0:
            return [a + b for a, b in zip(u, mu, strict=True)]
    return None


def nearest(G: Matrix) -> Vector | None:
    """`argmin {v^T G v : v >= 0, sum v = 1}` by trying all sets; None unless G is positive definite."""
    one = [Fraction(1)] * len(G)
    for free in _subsets(len(G)):
        z = solve(G, one, free)
        if z is None:
            return None
        if free and min(z) >= 0:
            w = [x / sum(z) for x in z]
            y = times(G, w)
            if min(y) >= dot(w, y):
                return w
    return None


def projection_from(G: Matrix, u: Vector, free: Sequence[bool], most: int = 300) -> Vector | None:
    """`projection`, started from a guess of what binds: the offender of the largest index changes sides.

    Source: Murty, Note on a Bard-type scheme for solving the complementarity problem (1974).
    """
    q, free = times(G, u), list(free)
    for _ in range(most):
        mu = solve(G, [-x for x in q], [j for j, f in enumerate(free) if f])
        if mu is None:
            return None
        y = [a + b for a, b in zip(times(G, mu), q, strict=True)]
        wrong = [j for j in range(len(u)) if (mu[j] < 0 if free[j] else y[j] < 0)]
        if not wrong:
            return [a + b for a, b in zip(u, mu, strict=True)]
        free[wrong[-1]] = not free[wrong[-1]]
    return None


def rounded(G: Matrix, eps: float, draw: int) -> Matrix:
    """G with entries moved by `eps |g_i| |g_j|`, up or down by lot."""
    m = len(G)
    signs = torch.randint(2, (m, m), generator=torch.Generator().manual_seed(draw)).tolist()
    norms = [float(G[i][i]) ** 0.5 for i in range(m)]
    moved = [row[:] for row in G]
    for i in range(m):
        for j in range(i, m):
            moved[i][j] += (2 * signs[i][j] - 1) * Fraction(eps * norms[i] * norms[j])
            moved[j][i] = moved[i][j]
    return moved


def distance(G: Matrix, v: Vector, w: Vector) -> float:
    """`|J^T (v - w)|`."""
    off = [a - b for a, b in zip(v, w, strict=True)]
    return max(float(dot(off, times(G, off))), 0.0) ** 0.5


def determined(G: Matrix, w: Vector, again: Callable[[Matrix], Vector | None], eps: float, draws: int = 4) -> float:
    """How far the update moves when G is rounded: the largest distance over some draws.

    Infinite if one of the rounded Gramians is singular.
    """
    moved = [again(rounded(G, eps, k)) for k in range(draws)]
    return max(float("inf") if v is None else distance(G, v, w) for v in moved)


def _subsets(m: int) -> chain:
    return chain.from_iterable(combinations(range(m), k) for k in range(m + 1))
