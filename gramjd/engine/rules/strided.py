"""Strided parts of memory: where their elements lie, who owns them, and how rows are read and written there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.layout import Layout, Owners, Piece

Numbers = npt.NDArray[np.int64]
# Elements whose owners are looked up one by one; for more of them rows are dense.
MOST_LOOKED_UP = 1 << 22


class Strided(NamedTuple):
    """Sizes, strides and offset of a part of memory, in elements."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> Strided:
        """Where a tensor lies in its memory."""
        return cls(tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))

    @classmethod
    def row_major(cls, shape: Sequence[int]) -> Strided:
        """A tensor of this shape that fills its memory."""
        strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
        return cls(tuple(shape), tuple(strides), 0)

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.offset + sum((n - 1) * s for n, s in zip(self.sizes, self.strides, strict=True)) + 1

    @property
    def fills(self) -> bool:
        """Returns True if it is row-major, without gaps, from the first address on."""
        strides = Strided.row_major(self.sizes).strides
        return not self.offset and all(
            n == 1 or s == t for n, s, t in zip(self.sizes, self.strides, strides, strict=True)
        )

    @property
    def disjoint(self) -> bool:
        """Returns True if its elements have addresses of their own, as far as sizes and strides show at once."""
        reach = 0
        for stride, size in sorted(zip(self.strides, self.sizes, strict=True)):
            if size > 1 and stride <= reach:
                return False
            reach += (size - 1) * stride
        return True

    def addresses(self) -> Numbers:
        """[*sizes]: the address of each element."""
        found = np.full(self.sizes, self.offset, dtype=np.int64)
        for d, (size, stride) in enumerate(zip(self.sizes, self.strides, strict=True)):
            found += (np.arange(size) * stride).reshape([-1 if e == d else 1 for e in range(len(self.sizes))])
        return found

    def numbers(self, size: int) -> Numbers:
        """For each address, of `size` at least, the number of the element that lies there; -1 for none."""
        found = np.full(max(size, self.end), -1, dtype=np.int64)
        found[self.addresses().reshape(-1)] = np.arange(math.prod(self.sizes))
        return found

    def rows(self, memory: Tensor) -> Tensor:
        """[K, *sizes] of memory [K, addresses]."""
        begin = memory.storage_offset() + self.offset  # the rows may themselves be some of others
        return memory.as_strided((len(memory), *self.sizes), (memory.stride(0), *self.strides), begin)


def laid_out(values: Tensor, base: Strided, size: int, fresh: bool) -> Tensor:
    """Memory [K, size] in which rows [K, *base.sizes] lie as `base` says; memory of its own if `fresh`."""
    if base.fills and size == math.prod(base.sizes):
        flat = values.reshape(len(values), -1)
        return flat.clone(memory_format=torch.contiguous_format) if fresh else flat.contiguous()
    memory = values.new_zeros(len(values), size)
    base.rows(memory).copy_(values)
    return memory


# -- who owns a part --------------------------------------------------------------------------------------------------


@layouts.cached
def owners_of_part(layout: Layout, base: Strided, part: Strided) -> Layout | None:
    """The layout over a part of `base`, for rows with this layout over all of it.

    Returns None if no loss owns any of it.
    """
    if not layout.diagonal:
        return layouts.dense(layout.owners, math.prod(part.sizes))
    inner, coarse = _inner(layout, base, part)
    numbers = coarse.addresses() if base.fills else base.numbers(coarse.end)[coarse.addresses()]
    pieces = layout.pieces[:-1] if inner > 1 else layout.pieces
    return owned(_everyone(layout, pieces), numbers // inner, part.sizes)


def can_look_up(layout: Layout, base: Strided, part: Strided) -> bool:
    """Returns True if the owners of a part are not too many to look up one by one."""
    if not layout.diagonal:
        return True
    looked_up = math.prod(_inner(layout, base, part)[1].sizes), math.prod(p.size for p in layout.pieces[:-1])
    return layout.stacked * max(looked_up) <= MOST_LOOKED_UP


def _inner(layout: Layout, base: Strided, part: Strided) -> tuple[int, Strided]:
    """The size of the last piece, if it is no batch axis, and the part with one element for all within that piece."""
    last = layout.pieces[-1]
    if last.diagonal or not base.fills:
        return 1, part
    within = [s % last.size != 0 for s in part.strides]
    reach = sum((n - 1) * s for n, s, w in zip(part.sizes, part.strides, within, strict=True) if w)
    if part.offset % last.size + reach >= last.size:
        return 1, part
    sizes = [1 if w else n for n, w in zip(part.sizes, within, strict=True)]
    return last.size, Strided(tuple(sizes), part.strides, part.offset)


def _everyone(layout: Layout, pieces: Sequence[Piece]) -> Owners:
    """[K, elements of `pieces`]: the owner of each."""
    owners = layout.owners
    for axis, piece in enumerate(pieces):
        if not piece.diagonal:
            owners = np.expand_dims(owners, 1 + axis)
    return np.broadcast_to(owners, (layout.stacked, *(p.size for p in pieces))).reshape(layout.stacked, -1)


def owned_at(layout: Layout, numbers: Numbers, shape: Sequence[int]) -> Layout | None:
    """The layout over `shape` where each element is a copy of the one with that number (-1: none)."""
    if not layout.diagonal:
        return layouts.dense(layout.owners, math.prod(shape))
    return owned(_everyone(layout, layout.pieces), numbers, shape)


def owned(everyone: Owners, numbers: Numbers, shape: Sequence[int]) -> Layout | None:
    """The same from the owner of each element [K, elements]; `numbers` may be of size 1 where owners are constant."""
    index = numbers.reshape(-1)
    mine = np.where(index >= 0, everyone[:, index.clip(0)], -1)
    return coarsened(mine.reshape(len(everyone), *numbers.shape), shape) if (mine >= 0).any() else None


def owned_by_readers(layout: Layout, numbers: Numbers, shape: Sequence[int]) -> Layout | None:
    """The layout over `shape` where each element of the output reads the one with that number (-1: none).

    Returns None if two losses own what reads one element.
    """
    everyone, index = _everyone(layout, layout.pieces), numbers.reshape(-1)
    mine = np.full((layout.stacked, math.prod(shape)), -1, dtype=np.int64)
    for row, owners in zip(mine, everyone, strict=True):
        live = (owners >= 0) & (index >= 0)
        row[index[live]] = owners[live]
        if (row[index[live]] != owners[live]).any():
            return None
    return coarsened(mine.reshape(layout.stacked, *shape), shape)


def coarsened(owners: Owners, shape: Sequence[int]) -> Layout:
    """The layout of owners known element by element: dimensions along which they are constant are no batch axis."""
    pieces = []
    for dim, size in enumerate(shape):
        best = owners.max(axis=1 + dim, keepdims=True)
        constant = bool(((owners == best) | (owners < 0)).all())
        owners = best if constant else owners
        pieces.append(Piece(size, not constant))
    squeezed = owners.reshape(len(owners), *(p.size for p in pieces if p.diagonal))
    return layouts.canonical(pieces, squeezed)


# -- dimensions of a view ---------------------------------------------------------------------------------------------


def dimensions_kept(view: Strided, base: Strided) -> dict[int, int]:
    """Dimensions of a view of `base` whose index is the index of a dimension of the base, whatever the others are.

    That is so where strides agree, and the other dimensions either move by whole multiples of the base's larger steps
    or stay within its smaller ones.
    """
    found: dict[int, int] = {}
    for dim, (size, stride) in enumerate(zip(base.sizes, base.strides, strict=True)):
        whole = size * stride
        if size == 1 or not whole or any(s % whole for s in base.strides if s > stride) or not _nested(base, dim):
            continue
        for d, (n, s) in enumerate(zip(view.sizes, view.strides, strict=True)):
            others = [pair for e, pair in enumerate(zip(view.sizes, view.strides, strict=True)) if e != d]
            inside = [(m, t) for m, t in others if t % whole]
            start = view.offset - base.offset
            reach = start % stride + sum((m - 1) * t for m, t in inside)
            if n == size and s == stride and reach < stride and start >= 0 and start % whole < stride:
                found[d] = dim
                break
    return found


def _nested(base: Strided, dim: int) -> bool:
    """Returns True if the dimensions with smaller strides stay within one step of this one."""
    stride = base.strides[dim]
    return sum((n - 1) * s for n, s in zip(base.sizes, base.strides, strict=True) if s < stride) < stride


def summed_at(values: Tensor, view: Strided, base: Strided) -> Tensor:
    """[K, *base.sizes]: rows [K, *view.sizes] added where the view has them."""
    memory = values.new_zeros(len(values), max(view.end, base.end))
    if view.disjoint:
        view.rows(memory).copy_(values)
    else:
        places = torch.arange(memory.shape[1], device=values.device).as_strided(view.sizes, view.strides, view.offset)
        memory.index_add_(1, places.reshape(-1), values.reshape(len(values), -1))
    return base.rows(memory)
