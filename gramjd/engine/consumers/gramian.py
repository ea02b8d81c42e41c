"""What the shares of the parameters add up to: the whole Gramian, or its diagonal alone.

Both take a parameter's rows as a factor, as a block of inner products, or as given rows, with the loss that owns each.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gramjd.engine.factor import Factor
from gramjd.engine.layout import Mask, Rows, placed
from gramjd.kernels.norms import norms_rows
from gramjd.kernels.rows import gram_own_slices, gram_rows
from gramjd.kernels.symmetric import mirrored


@dataclass(eq=False)
class Sum(ABC):
    """A sum over parameters, in float32 at least."""

    m: int
    device: torch.device
    dtype: torch.dtype
    value: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Start from zero."""
        self.value = torch.zeros(self.shape, dtype=self.dtype, device=self.device)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """[m, m] or [m]."""

    @abstractmethod
    def add_factor(self, factor: Factor) -> None:
        """A factor that is all of its part of a parameter."""

    @abstractmethod
    def add(self, rows: Rows, block: Tensor, columns: Rows | None = None) -> None:
        """`G[rows, columns] += block`, and its transpose where columns are given; else it is upper. -1 is nobody."""

    @abstractmethod
    def add_rows(self, rows: Rows, J: Tensor, whole: bool = False) -> None:
        """Rows J [R, d] of a parameter, or (`whole`) of all of it."""

    @abstractmethod
    def add_blocks(self, rows: Rows, J: Tensor) -> None:
        """Rows J [b, K, d] whose slices n lie in disjoint parts of the parameter; owners [K, b]."""

    def fresh(self) -> Sum:
        """The same kind of sum, from zero."""
        return type(self)(self.m, self.device, self.dtype)

    @staticmethod
    @abstractmethod
    def visits(blocks: Sequence[Rows]) -> list[tuple[Rows, ...]]:
        """Which blocks of losses have to be walked for together, so that every entry is seen."""

    @abstractmethod
    def paste(self, other: Sum, rows: Rows, columns: Rows) -> None:
        """Take over the part for two blocks of losses, each without gaps."""

    @abstractmethod
    def finished(self) -> Tensor:
        """The result."""

    def dtype_of(self, factor: Factor) -> torch.dtype:
        """Products are formed in float32 at least and in no more than the sum keeps."""
        return torch.promote_types(factor.dtype, torch.float32) if self.dtype == torch.float32 else self.dtype

    def _is_everyone(self, rows: Rows) -> bool:
        return len(rows) == self.m and bool((rows == np.arange(self.m)).all())

    def _on_device(self, index: Rows | Mask) -> Tensor:
        return placed(index, self.device)


@dataclass(eq=False)
class Gramian(Sum):
    """`G = J J^T` [m, m], of which `value` holds the upper half."""

    # The rows added last and their Gram matrix: a linear layer's bias comes right before its weight, with those rows.
    # Forgotten with the next addition, after which their memory may be written over.
    latest: tuple[Tensor, Tensor] | None = field(init=False, default=None)

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return self.m, self.m

    def add_factor(self, factor: Factor) -> None:  # noqa: D102
        self.add(factor.rows, factor.gram(self.dtype_of(factor), self.latest))

    def add(self, rows: Rows, block: Tensor, columns: Rows | None = None) -> None:  # noqa: D102
        self.latest = None
        block = block.to(device=self.device, dtype=self.dtype)
        if columns is None and self._is_everyone(rows):
            self.value += block
            return
        other = rows if columns is None else columns
        block = mirrored(block) if columns is None else block
        block = self._live(self._live(block, rows).T, other).T
        a, b = self._on_device(rows[rows >= 0]), self._on_device(other[other >= 0])
        self.value.index_put_((a[:, None], b[None, :]), block, accumulate=True)
        if columns is not None:
            self.value.index_put_((b[:, None], a[None, :]), block.T, accumulate=True)

    def _live(self, block: Tensor, rows: Rows) -> Tensor:
        if (rows >= 0).all():
            return block
        return block.index_select(0, placed(np.flatnonzero(rows >= 0), block.device))

    def add_rows(self, rows: Rows, J: Tensor, whole: bool = False) -> None:  # noqa: D102
        block = gram_rows(J, torch.promote_types(J.dtype, self.dtype))
        self.add(rows, block)
        if whole:
            self.latest = (J, block)

    def add_blocks(self, rows: Rows, J: Tensor) -> None:  # noqa: D102
        self.latest = None
        K, b = rows.shape
        blocks = gram_own_slices(J, torch.promote_types(J.dtype, self.dtype))
        left = np.broadcast_to(rows.T[:, :, None], (b, K, K)).reshape(-1)
        right = np.broadcast_to(rows.T[:, None, :], (b, K, K)).reshape(-1)
        live = (left >= 0) & (right >= 0)
        flat = blocks.to(device=self.device, dtype=self.dtype).reshape(-1)
        flat = flat if live.all() else flat[self._on_device(live)]
        self.value.index_put_((self._on_device(left[live]), self._on_device(right[live])), flat, accumulate=True)

    @staticmethod
    def visits(blocks: Sequence[Rows]) -> list[tuple[Rows, ...]]:
        """Pairs, for the cross terms; the diagonal blocks come several times, equally."""
        return list(itertools.combinations(blocks, 2))

    def paste(self, other: Sum, rows: Rows, columns: Rows) -> None:  # noqa: D102
        span = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        self.value[span] = other.value[span]

    def finished(self) -> Tensor:
        """G, symmetric to the last bit."""
        return mirrored(self.value)


@dataclass(eq=False)
class Diagonal(Sum):
    """The squared norms of the rows of J, [m], without the products of different rows where they can be told apart."""

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return (self.m,)

    def add_factor(self, factor: Factor) -> None:  # noqa: D102
        dtype = self.dtype_of(factor)
        live = factor.rows[factor.rows >= 0]
        if len(np.unique(live)) == len(live):
            self._add_norms(factor.rows, factor.norms(dtype))
        else:
            self.add(factor.rows, factor.gram(dtype))

    def add(self, rows: Rows, block: Tensor, columns: Rows | None = None) -> None:  # noqa: D102
        other = rows if columns is None else columns
        block = mirrored(block) if columns is None else block
        same = self._on_device((rows[:, None] == other[None, :]) & (rows[:, None] >= 0))
        mine = block.to(device=self.device).masked_fill(~same, 0).sum(1)
        self._add_norms(rows, mine if columns is None else 2 * mine)

    def add_rows(self, rows: Rows, J: Tensor, whole: bool = False) -> None:  # noqa: D102
        J = J.to(torch.promote_types(J.dtype, self.dtype))
        owners, place = np.unique(rows, return_inverse=True)
        if len(owners) < len(rows):
            J = J.new_zeros(len(owners), J.shape[1]).index_add_(0, self._on_device(place.reshape(-1)), J)
            rows = owners
        self._add_norms(rows, norms_rows(J, J.dtype))

    def add_blocks(self, rows: Rows, J: Tensor) -> None:  # noqa: D102
        if len(rows) == 1:
            self._add_norms(rows[0], norms_rows(J[:, 0], torch.promote_types(J.dtype, self.dtype)))
            return
        for owners, slices in zip(rows.T, J, strict=True):
            self.add_rows(owners, slices)

    def _add_norms(self, rows: Rows, norms: Tensor) -> None:
        norms = norms.to(device=self.device, dtype=self.dtype)
        if self._is_everyone(rows):
            self.value += norms
            return
        live = np.flatnonzero(rows >= 0)
        self.value.index_add_(0, self._on_device(rows[live]), norms[self._on_device(live)])

    @staticmethod
    def visits(blocks: Sequence[Rows]) -> list[tuple[Rows, ...]]:
        """Each block by itself."""
        return [(block,) for block in blocks]

    def paste(self, other: Sum, rows: Rows, columns: Rows) -> None:  # noqa: D102
        span = slice(int(rows[0]), int(rows[-1]) + 1)
        self.value[span] = other.value[span]

    def finished(self) -> Tensor:
        """The squared norms; rounding may not make one negative."""
        return self.value.clamp_min(0)
