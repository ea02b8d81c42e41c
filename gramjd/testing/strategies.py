"""Hypothesis strategies for Jacobians and Gramians: small integers, with the structures that break aggregators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from gramjd.errors import InputError

# Exact in binary: rows scaled by it have the very inner products, conflicts and rank that they had, rounding included.
NEAR = 2.0**-10
_STEEP = 8
# The fewest rows of a matrix with this much conflict.
LEAST = {"any": 1, "none": 1, "some": 2, "strong": 2, "stationary": 1}

Range = int | tuple[int, int]


def jacobians(
    rows: Range = (1, 5),
    columns: Range = (1, 5),
    *,
    conflict: str = "any",
    rank: int | None = None,
    scale: Range = 0,
    row_scale: Range = 0,
    duplicated_rows: bool | None = None,
    zero_rows: bool | None = None,
    near_singular: bool | None = None,
    permuted: bool = True,
    largest: int = 9,
    dtype: torch.dtype = torch.float64,
) -> st.SearchStrategy[Tensor]:
    """Jacobians [m, n] of small integers, which shrink towards few rows, few columns, zeros and ones.

    Each of `duplicated_rows`, `zero_rows` and `near_singular` is True (in every matrix), False (in none) or None (now
    and then). All structures can be combined: scaling and repeating rows changes neither conflict nor rank.

    Args:
        rows: m, or the least and the largest m.
        columns: n, or the least and the largest n.
        conflict: "any"; "none" (no two rows have a negative inner product); "some" (at least two have); "strong" (one
            direction helps all losses, but eight times less than they stand against each other); "stationary" (a
            combination of the rows with positive coefficients is zero: nobody gains but at the cost of another).
        rank: at most this many linearly independent rows; None for no limit.
        scale: k, or the least and the largest k, of a factor 2^k for the whole matrix.
        row_scale: the same for each row on its own.
        duplicated_rows: rows that stand there twice or more.
        zero_rows: rows of zeros.
        near_singular: rows that are 2^-10 away from another one: `cond(J J^T)` of about 10^6 and more.
        permuted: False to leave the rows in the order in which they were made, the special ones last.
        largest: of the integers drawn; those computed from them can be larger.
        dtype: of the matrix.

    Raises:
        InputError: bad options, or not enough rows or columns for all that was asked for.

    >>> from hypothesis import find
    >>> find(jacobians(rows=2, conflict="some", zero_rows=False), lambda J: J.shape[1] == 3)
    tensor([[ 1.,  0.,  0.],
            [-1.,  0.,  0.]], dtype=torch.float64)
    """
    if conflict not in LEAST:
        raise InputError(f"conflict must be one of {', '.join(map(repr, LEAST))}; got {conflict!r}")
    wishes = {"duplicated_rows": duplicated_rows, "zero_rows": zero_rows, "near_singular": near_singular}
    if conflict == "stationary" and near_singular:
        raise InputError("near_singular=True would move a stationary matrix off its point; leave out one of the two")
    if conflict == "stationary":
        wishes["near_singular"] = False
    for name, wish in wishes.items():
        if wish not in (True, False, None):
            raise InputError(f"{name} must be True, False or None; got {wish!r}")
    if rank is not None and rank < 1 + (conflict == "strong"):
        raise InputError(f"rank must be 1 or more (2 for strong conflict), or None; got {rank!r}")
    least = LEAST[conflict] + sum(wish is True for wish in wishes.values())
    m = between(rows, "rows", least)
    n = between(columns, "columns", 1 + (conflict == "strong"))
    shapes = st.tuples(st.integers(*m), st.integers(*n))
    exponents = between(scale, "scale", None), between(row_scale, "row_scale", None)
    return _matrices(shapes, conflict, rank, exponents, wishes, permuted, largest, dtype)


def gramians(rows: Range = (1, 5), columns: Range = (1, 5), **options: Any) -> st.SearchStrategy[Tensor]:
    """Gramians `J J^T` [m, m] of the `jacobians` with the same options.

    >>> from hypothesis import find
    >>> find(gramians(rows=2, conflict="some"), lambda G: True)
    tensor([[ 1., -1.],
            [-1.,  1.]], dtype=torch.float64)
    """
    return jacobians(rows, columns, **options).map(lambda J: J @ J.mT)


def positive_vectors(m: int) -> st.SearchStrategy[Tensor]:
    """Vectors [m] of positive numbers from 2^-10 to 1000, which shrink to ones."""
    numbers = st.sampled_from([1.0, 2.0, 3.0, 5.0, 0.5, 10.0, 100.0, 1000.0, NEAR])
    return st.lists(numbers, min_size=m, max_size=m).map(lambda c: torch.tensor(c, dtype=torch.float64))


def between(value: Range, name: str, least: int | None) -> tuple[int, int]:
    """`value` as a pair (least, largest); the least raised to `least`."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(k, int) for k in pair) or pair[0] > pair[1]:
        raise InputError(f"{name} must be an int or a pair (least, largest) of ints; got {value!r}")
    low, high = pair
    if least is None:
        return low, high
    if high < least:
        raise InputError(f"{name} must allow {least} or more for what was asked for; got {value!r}")
    return max(low, least), high


@st.composite
def _matrices(
    draw: st.DrawFn,
    shapes: st.SearchStrategy[tuple[int, int]],
    conflict: str,
    rank: int | None,
    exponents: Sequence[tuple[int, int]],
    wishes: dict[str, bool | None],
    permuted: bool,
    largest: int,
    dtype: torch.dtype,
) -> Tensor:
    m, n = draw(shapes)
    counts = _counts(draw, m - LEAST[conflict], wishes)
    J = _CORES[conflict](draw, m - sum(counts.values()), n, rank, largest)
    for name, count in counts.items():
        for _ in range(count):
            J = torch.cat([J, _EXTRA_ROWS[name](draw, J)[None]])
    if permuted:
        J = J[list(draw(st.permutations(range(m))))]
    whole, each = exponents
    if each != (0, 0):
        J = J * 2.0 ** torch.tensor(draw(_integers(m, *each)), dtype=torch.float64)[:, None]
    if whole != (0, 0):
        J = J * 2.0 ** draw(st.integers(*whole))
    return (J + 0.0).to(dtype)  # a zero has no sign to read


def _counts(draw: st.DrawFn, spare: int, wishes: dict[str, bool | None]) -> dict[str, int]:
    """How many of the `spare` rows are of each special kind; every kind wished for keeps one."""
    reserved = sum(wish is True for wish in wishes.values())
    counts = {}
    for name, wish in wishes.items():
        reserved -= wish is True
        room = spare - reserved
        counts[name] = 0 if wish is False or not room else draw(st.integers(int(wish is True), min(room, 2)))
        spare -= counts[name]
    return counts


def _integers(count: int, low: int, high: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(low, high), min_size=count, max_size=count)


def _matrix(draw: st.DrawFn, m: int, n: int, low: int, high: int) -> Tensor:
    return torch.tensor(draw(_integers(m * n, low, high)), dtype=torch.float64).reshape(m, n)


def _any(draw: st.DrawFn, m: int, n: int, rank: int | None, largest: int, low: int | None = None) -> Tensor:
    low = -largest if low is None else low
    if rank is None or rank >= min(m, n):
        return _matrix(draw, m, n, low, largest)
    return _matrix(draw, m, rank, max(low, -3), 3) @ _matrix(draw, rank, n, low, largest)


def _none(draw: st.DrawFn, m: int, n: int, rank: int | None, largest: int) -> Tensor:
    signs = torch.tensor(draw(st.lists(st.sampled_from([1.0, -1.0]), min_size=n, max_size=n)), dtype=torch.float64)
    return _any(draw, m, n, rank, largest, low=0) * signs


def _some(draw: st.DrawFn, m: int, n: int, rank: int | None, largest: int) -> Tensor:
    J = _any(draw, m, n, rank, largest)
    if not bool(J[0].any()):
        # A row that is there already, so that the rank stays what it is.
        J[0] = next((g for g in J if bool(g.any())), torch.eye(1, n, dtype=torch.float64)[0])
    if float(J[0] @ J[1]) >= 0:
        # The fewest multiples of row 0 that turn row 1 against it.
        J[1] -= J[0] * (torch.floor(J[0] @ J[1] / (J[0] @ J[0])) + 1)
    return J


def _stationary(draw: st.DrawFn, m: int, n: int, rank: int | None, largest: int) -> Tensor:
    J = _any(draw, m - 1, n, rank, largest)
    multipliers = torch.tensor(draw(_integers(m - 1, 1, 3)), dtype=torch.float64)
    return torch.cat([J, -(multipliers @ J)[None]])


def _strong(draw: st.DrawFn, m: int, n: int, rank: int | None, largest: int) -> Tensor:
    J = _stationary(draw, m, n - 1, None if rank is None else rank - 1, largest)
    if not bool(J.any()):
        J[0, 0], J[-1, 0] = 1, -1
    return torch.cat([_STEEP * J, torch.ones(m, 1, dtype=torch.float64)], 1)


def _near(draw: st.DrawFn, J: Tensor) -> Tensor:
    i = draw(st.integers(0, len(J) - 1))
    # With the signs and the zeros of the row itself, so that rows that did not conflict still do not.
    away = _matrix(draw, 1, J.shape[1], 0, 3)[0] * J[i].sign()
    return J[i] + NEAR * away


_CORES = {"any": _any, "none": _none, "some": _some, "strong": _strong, "stationary": _stationary}
_EXTRA_ROWS = {
    "near_singular": _near,
    "duplicated_rows": lambda draw, J: J[draw(st.integers(0, len(J) - 1))],
    "zero_rows": lambda draw, J: torch.zeros(J.shape[1], dtype=torch.float64),
}
