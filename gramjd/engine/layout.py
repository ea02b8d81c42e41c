"""Owners: which loss owns which slice of a cotangent.

At a node with output `z` the cotangent of m losses has m rows shaped like `z`. A `Layout` says how they are stored in
one tensor `values [K, *z.shape]`. Read row-major, `z` is a product of *pieces*, each diagonal or not:

    z.shape = [B, T, d], pieces ((B, diagonal), (T * d, dense)), owners [K, B]

says that slice b of stacked row k belongs to loss `owners[k, b]` (-1: to none, the slice is zero). A loss may own
several slices: its row of the Jacobian is the sum over them. Because pieces follow the row-major order and not the
dimensions, a layout survives every view and reshape as it is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

Owners = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Shape = Sequence[int]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Piece:
    """A factor of a tensor's row-major extent; `dim` is the dimension it lies in, where a shape was given."""

    size: int
    diagonal: bool
    dim: int = -1


@dataclass(frozen=True, eq=False)
class Layout:
    """Canonical pieces (neighbours differ in kind, none has size 1) and the owner of each (k, diagonal index).

    Equal layouts are one object while any is alive (`interned`).
    """

    pieces: tuple[Piece, ...]
    owners: Owners

    @cached_property
    def stacked(self) -> int:
        """K, the number of stacked rows."""
        return int(self.owners.shape[0])

    @property
    def diagonal(self) -> bool:
        """Returns True if any batch axis is left."""
        return self.owners.ndim > 1

    @cached_property
    def structure(self) -> tuple[tuple[int, bool], ...]:
        """The pieces without their dimensions: equal for layouts whose values can be stacked."""
        return tuple((p.size, p.diagonal) for p in self.pieces)

    @cached_property
    def key(self) -> tuple[tuple[tuple[int, bool], ...], tuple[int, ...], bytes]:
        """Hashable identity."""
        return self.structure, self.owners.shape, self.owners.tobytes()

    @cached_property
    def gaps(self) -> bool:
        """Returns True if there are slices that no loss owns, which are zero."""
        return bool((self.owners < 0).any())

    @cached_property
    def losses(self) -> int:
        """How many distinct losses own something here."""
        return int(np.unique(self.owners[self.owners >= 0]).size)

    def describe(self) -> str:
        """The layout in words, as `explain` prints it."""
        axes = " x ".join(str(p.size) for p in self.pieces if p.diagonal)
        stacked = f"{self.stacked} row{'s' if self.stacked > 1 else ''}"
        return f"batch axis {axes}, {stacked}" if axes else stacked


# Owners of larger layouts would keep too much memory alive in the caches below.
SMALL = 1 << 12
_ALIVE: WeakValueDictionary[Any, Layout] = WeakValueDictionary()
# Keeps those of one training step alive until the next.
_RECENT: deque[Layout] = deque(maxlen=512)


def canonical(pieces: Sequence[Piece], owners: Owners) -> Layout:
    """Merge neighbours of one kind and drop pieces of size 1; `owners` has one axis a diagonal piece."""
    merged: list[list[int | bool]] = []
    sizes: list[int] = []
    for piece in pieces:
        if piece.size == 1:
            continue
        if merged and merged[-1][1] == piece.diagonal:
            merged[-1][0] *= piece.size
            if piece.diagonal:
                sizes[-1] *= piece.size
        else:
            merged.append([piece.size, piece.diagonal])
            if piece.diagonal:
                sizes.append(piece.size)
    flat = np.ascontiguousarray(owners).reshape(owners.shape[0], *sizes)
    return interned(Layout(tuple(Piece(int(s), bool(d)) for s, d in merged), flat))


def interned(layout: Layout) -> Layout:
    """The one object that stands for layouts equal to a canonical one."""
    known = _ALIVE.setdefault(layout.key, layout)
    if known is layout and layout.owners.size <= SMALL:
        _RECENT.append(layout)
    return known


def cached(function: Callable[..., Result]) -> Callable[..., Result]:
    """Keep the results for small layouts: a network repeats its layers, and training its steps."""
    kept = lru_cache(maxsize=1024)(function)

    @wraps(function)
    def lookup(layout: Layout, *args: Hashable) -> Result:
        return kept(layout, *args) if layout.owners.size <= SMALL else function(layout, *args)

    return lookup


def dense(owners: Sequence[int] | Owners, numel: int) -> Layout:
    """K rows without a batch axis."""
    return canonical([Piece(numel, False)], np.asarray(owners, dtype=np.int64).reshape(-1))


def split(layout: Layout, shape: Shape) -> tuple[list[Piece], Owners] | None:
    """`_split`, cached."""
    return _split(layout, tuple(shape))


@cached
def _split(layout: Layout, shape: tuple[int, ...]) -> tuple[list[Piece], Owners] | None:
    """Cut the pieces at the borders of the dimensions of `shape`, so that each lies in one dimension.

    Returns None where a diagonal piece and a dimension overlap without nesting.
    """
    dim_ends = [(math.prod(shape[d + 1 :]), d) for d in range(len(shape)) if shape[d] != 1]
    tail = math.prod(shape)
    strides = []
    for piece in layout.pieces:
        tail //= piece.size
        strides.append((tail, piece.diagonal))
    cuts = sorted({s for s, _ in dim_ends} | {s for s, _ in strides}, reverse=True)
    pieces: list[Piece] = []
    before, at_dim, at_piece = math.prod(shape), 0, 0
    for cut in cuts:
        if before % cut:
            return None
        pieces.append(Piece(before // cut, strides[at_piece][1], dim_ends[at_dim][1]))
        at_dim += cut == dim_ends[at_dim][0]
        at_piece += cut == strides[at_piece][0]
        before = cut
    sizes = [p.size for p in pieces if p.diagonal]
    return pieces, layout.owners.reshape(layout.stacked, *sizes)


def diagonal_dims(layout: Layout, shape: Shape) -> frozenset[int] | None:
    """The dimensions that hold a part of a batch axis; None where they cannot be told."""
    return _diagonal_dims(layout, tuple(shape)) if layout.diagonal else frozenset()


@cached
def _diagonal_dims(layout: Layout, shape: tuple[int, ...]) -> frozenset[int] | None:
    cut = _split(layout, shape)
    return None if cut is None else frozenset(p.dim for p in cut[0] if p.diagonal)


def carry(layout: Layout, shape: Shape, to_shape: Shape, to_dim: dict[int, int]) -> Layout:
    """The layout over `to_shape` when dimension d of `shape` becomes dimension `to_dim[d]`.

    All diagonal pieces must lie in the dimensions of `to_dim`; the other dimensions of `to_shape` are not diagonal.
    """
    return _carry(layout, tuple(shape), tuple(to_shape), tuple(to_dim.items()))


@cached
def _carry(
    layout: Layout, shape: tuple[int, ...], to_shape: tuple[int, ...], to_dim: tuple[tuple[int, int], ...]
) -> Layout:
    if not layout.diagonal:
        return dense(layout.owners, math.prod(to_shape))
    cut = split(layout, shape)
    assert cut is not None, "the caller densifies what cannot be split"
    pieces, owners = cut
    axis_of: dict[int, int] = {}
    for piece in pieces:
        if piece.diagonal:
            axis_of[id(piece)] = len(axis_of) + 1
    source = {to: d for d, to in to_dim}
    moved: list[Piece] = []
    for d, size in enumerate(to_shape):
        mine = [p for p in pieces if d in source and p.dim == source[d]]
        moved += mine if mine else [Piece(size, False)]
    order = [0] + [axis_of[id(p)] for p in moved if p.diagonal]
    return canonical(moved, owners.transpose(order))


def along(layout: Layout, shape: Shape, dim: int) -> tuple[list[Piece], list[Piece], Owners] | None:
    """Make the whole of `dim` one diagonal piece (repeating owners), as moves along it need.

    Returns the pieces before and after it, and owners whose axis `1 + diagonal pieces before` is the dimension.
    """
    cut = split(layout, shape)
    if cut is None:
        return None
    pieces, owners = cut
    before = [p for p in pieces if p.dim < dim]
    inside = [p for p in pieces if p.dim == dim]
    after = [p for p in pieces if p.dim > dim]
    axis = 1 + sum(p.diagonal for p in before)
    sizes = [p.size for p in inside]
    full = owners
    for offset, piece in enumerate(inside):
        if not piece.diagonal:
            full = np.expand_dims(full, axis + offset)
    target = list(full.shape)
    target[axis : axis + len(sizes)] = sizes
    full = np.broadcast_to(full, target).reshape(*owners.shape[:axis], shape[dim], *target[axis + len(sizes) :])
    return before, after, full


def rejoin(before: list[Piece], after: list[Piece], owners: Owners) -> Layout | None:
    """The layout with a diagonal piece between `before` and `after`, coarser where owners repeat; None if all is -1."""
    if not (owners >= 0).any():
        return None
    axis = 1 + sum(p.diagonal for p in before)
    size = owners.shape[axis]
    inner = repeats(owners, axis)
    owners = np.take(owners, range(0, size, inner), axis=axis)
    middle = [Piece(size // inner, True), Piece(inner, False)]
    return canonical([*before, *middle, *after], owners)


def repeats(owners: Owners, axis: int) -> int:
    """The largest run length r such that owners repeat in runs of r along the whole axis."""
    size = owners.shape[axis]
    if size < 2:
        return 1
    change = (np.diff(owners, axis=axis) != 0).any(axis=tuple(a for a in range(owners.ndim) if a != axis))
    starts = np.flatnonzero(change) + 1
    return int(np.gcd.reduce(np.append(starts, size)))


def scatter(layout: Layout, shape: Shape, dim: int, index: Owners, size: int) -> Layout | None:
    """Owners after position p of `dim` was moved to the distinct position `index[p]` of a dimension of `size`."""
    parts = along(layout, shape, dim)
    assert parts is not None, "the caller densifies what cannot be split"
    before, after, owners = parts
    axis = 1 + sum(p.diagonal for p in before)
    moved = np.full((*owners.shape[:axis], size, *owners.shape[axis + 1 :]), -1, dtype=np.int64)
    moved[(slice(None),) * axis + (index,)] = owners
    return rejoin(before, after, moved)


def gather(layout: Layout, shape: Shape, dim: int, index: Owners) -> Layout | None:
    """Owners of the positions `index` of `dim`; None if no loss owns any of them."""
    parts = along(layout, shape, dim)
    assert parts is not None, "the caller densifies what cannot be split"
    before, after, owners = parts
    axis = 1 + sum(p.diagonal for p in before)
    return rejoin(before, after, np.take(owners, index, axis=axis))


def span(owners: Owners) -> slice | None:
    """The losses as a slice, if they are neighbours in their order.

    >>> span(np.array([3, 4, 5])), span(np.array([3, 5]))
    (slice(3, 6, None), None)
    """
    if not owners.size or owners.ndim > 1 or owners[0] < 0:
        return None
    found = slice(int(owners[0]), int(owners[0]) + len(owners))
    return found if (owners == np.arange(found.start, found.stop)).all() else None
