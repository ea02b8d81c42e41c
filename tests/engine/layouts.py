"""Random layouts with values, and the model that they are checked with: every loss's row written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from gramjd.engine.cotangent import Cotangent
from gramjd.engine.layout import Layout, Owners, Piece, canonical

M = 5
SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=4).map(tuple)


def expand(pieces: Sequence[Piece], rows: Owners, values: Tensor) -> Tensor:
    """`[M, *shape]`: each element of each stacked row added to the loss that owns its slice."""
    out = torch.zeros(M, math.prod(values.shape[1:]), dtype=torch.float64)
    flat = values.reshape(len(values), -1)
    for e in range(out.shape[1]):
        place = np.unravel_index(e, [p.size for p in pieces]) if pieces else ()
        own = tuple(int(n) for n, p in zip(place, pieces, strict=True) if p.diagonal)
        for k in range(len(flat)):
            owner = int(rows[(k, *own)])
            if owner >= 0:
                out[owner, e] += flat[k, e]
    return out.reshape(M, *values.shape[1:])


def dense_rows(group: Cotangent) -> Tensor:
    """The model of a group."""
    return expand(group.layout.pieces, group.layout.owners, group.values)


def factors(draw: st.DrawFn, size: int) -> list[int]:
    """`size` as a product, in some order."""
    out = []
    while size > 1:
        part = draw(st.sampled_from([d for d in range(2, size + 1) if size % d == 0]))
        out.append(part)
        size //= part
    return out or [1]


@st.composite
def pieces_of(draw: st.DrawFn, shape: Sequence[int]) -> list[Piece]:
    """Pieces that nest in the dimensions of `shape`."""
    sizes = [(size, d) for d, n in enumerate(shape) for size in factors(draw, n)]
    return [Piece(size, draw(st.booleans()), d) for size, d in sizes]


@st.composite
def rows_of(draw: st.DrawFn, pieces: Sequence[Piece], stacked: int | None = None) -> Owners:
    """Owners of the slices: distinct, repeating or nobody."""
    K = draw(st.integers(1, 3)) if stacked is None else stacked
    shape = (K, *(p.size for p in pieces if p.diagonal))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    kind = draw(st.sampled_from(["any", "nobody now and then", "runs", "a few"]))
    if kind == "runs":
        return np.arange(math.prod(shape)).reshape(shape) // 2 % M
    high = 2 if kind == "a few" else M
    rows = random.integers(0, high, shape)
    return np.where(random.random(shape) < 0.4, -1, rows) if kind == "nobody now and then" else rows


def values_of(pieces: Sequence[Piece], rows: Owners, shape: Sequence[int], seed: int) -> Tensor:
    """Small integers (sums are exact), zero in slices that belong to nobody."""
    K = len(rows)
    random = np.random.default_rng(seed)
    cut = random.integers(-4, 5, (K, *(p.size for p in pieces))).astype(float)
    owned = (rows >= 0).reshape(K, *(p.size if p.diagonal else 1 for p in pieces))
    return torch.from_numpy(np.where(owned, cut, 0.0).reshape(K, *shape))


@st.composite
def groups(draw: st.DrawFn, shape: Sequence[int] | None = None) -> Cotangent:
    """A group whose layout nests in the shape of its values; some loss owns something, as in every walk."""
    shape = draw(SHAPES) if shape is None else shape
    pieces = draw(pieces_of(shape))
    rows = draw(rows_of(pieces))
    if not (rows >= 0).any():
        rows.flat[-1] = M - 1
    values = values_of(pieces, rows, shape, draw(st.integers(0, 2**20)))
    return Cotangent.of(canonical(pieces, rows), values)


def is_canonical(layout: Layout) -> bool:
    """Neighbours differ in kind, none has size 1, rows have an axis a batch axis."""
    kinds = [p.diagonal for p in layout.pieces]
    sizes = [p.size for p in layout.pieces if p.diagonal]
    alternate = all(a != b for a, b in pairwise(kinds))
    return alternate and all(p.size > 1 for p in layout.pieces) and list(layout.owners.shape[1:]) == sizes
