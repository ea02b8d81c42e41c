"""Isometries: what a factor may pass through between an operation and a parameter.

Each is a value: it can be compared, kept and sent to another process. `push` goes from the parameter to the operand,
`pull` takes rows [R, *operand] back to rows of the parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Region = tuple[tuple[int, ...], tuple[int, ...], int]


@dataclass(frozen=True)
class Isometry:
    """One step of the way. This one is a copy, which may change the dtype."""

    dtype: torch.dtype | None = None

    def push(self, parameter: Tensor) -> Tensor:
        """The operand of a parameter."""
        return parameter

    def pull(self, rows: Tensor) -> Tensor:
        """Rows of the parameter from rows of the operand."""
        return rows if self.dtype is None else rows.to(self.dtype)


@dataclass(frozen=True)
class View(Isometry):
    """The parameter of shape `before` read in the shape `after`."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def push(self, parameter: Tensor) -> Tensor:
        return parameter.view(self.after)

    def pull(self, rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), *self.before)


@dataclass(frozen=True)
class Permute(Isometry):
    """Dimension d of the operand is dimension `order[d]` of the parameter."""

    order: tuple[int, ...] = ()

    def push(self, parameter: Tensor) -> Tensor:
        return parameter.permute(self.order)

    def pull(self, rows: Tensor) -> Tensor:
        return rows.permute(0, *(1 + self.order.index(d) for d in range(len(self.order))))


@dataclass(frozen=True)
class Part(Isometry):
    """`count` positions `start, start + step, ..` of dimension `dim`, which had `size` and is dropped if `single`."""

    dim: int = 0
    size: int = 0
    start: int = 0
    count: int = 1
    step: int = 1
    single: bool = False

    @property
    def _where(self) -> slice:
        return slice(self.start, self.start + (self.count - 1) * self.step + 1, self.step)

    def push(self, parameter: Tensor) -> Tensor:
        if self.single:
            return parameter.select(self.dim, self.start)
        return parameter[(slice(None),) * self.dim + (self._where,)]

    def pull(self, rows: Tensor) -> Tensor:
        rows = rows.unsqueeze(1 + self.dim) if self.single else rows
        shape = (*rows.shape[: 1 + self.dim], self.size, *rows.shape[2 + self.dim :])
        out = torch.zeros(shape, dtype=rows.dtype, device=rows.device)
        out[(slice(None),) * (1 + self.dim) + (self._where,)] = rows
        return out


TRANSPOSED = Permute(order=(1, 0))


@lru_cache(maxsize=4096)
def region_of(chain: tuple[Isometry, ...], shape: tuple[int, ...]) -> Region | None:
    """Which part of a parameter of `shape`, in which order, an operand is: sizes, strides and offset.

    `chain` leads from the operand to the parameter. Returns None if the operand is no strided part.
    """
    place = torch.empty(shape, device="meta")
    try:
        for step in reversed(chain):
            place = step.push(place)
    except RuntimeError:
        return None
    sizes = [n for n in place.shape if n != 1]
    strides = [int(s) for n, s in zip(place.shape, place.stride(), strict=True) if n != 1]
    return tuple(sizes), tuple(strides), int(place.storage_offset())


def separate(regions: Sequence[Region | None]) -> bool:
    """Returns True if any two regions are the same or share no element."""
    if None in regions:
        return len(regions) == 1
    spans = []
    for region in dict.fromkeys(regions):
        assert region is not None
        sizes, strides, offset = region
        spans.append((offset, offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))))
    spans.sort()
    return all(spans[n][1] < spans[n + 1][0] for n in range(len(spans) - 1))
