"""What the shares of the parameters add up to: the whole Gramian, or its diagonal alone."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gramjd.engine.cotangent import index_tensor
from gramjd.engine.factor import Factor
from gramjd.engine.given import GivenRows
from gramjd.engine.layout import Mask, Owners, span
from gramjd.engine.offsets import gram_by_offsets
from gramjd.engine.parameter import Jacobian, Part, by_pairs, stacked_rows
from gramjd.kernels.norms import norms_rows
from gramjd.kernels.rows import gram_rows
from gramjd.kernels.symmetric import mirrored


@dataclass(eq=False)
class Total(ABC):
    """A sum over parameters, in float32 at least."""

    m: int
    device: torch.device
    dtype: torch.dtype
    value: Tensor = field(init=False)
    # The owners that were last found to be all losses in their order: layouts share theirs.
    _everyone: Owners | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Start from zero."""
        self.value = torch.zeros(self.shape, dtype=self.dtype, device=self.device)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """[m, m] or [m]."""

    def add_share(self, jacobian: Jacobian) -> None:
        """Add what a parameter contributes."""
        for part in jacobian.parts(self.dtype):
            self._add_part(part)

    @abstractmethod
    def _add_part(self, part: Part) -> None:
        """Add the share of factors that no other part has products with."""

    @abstractmethod
    def add_rows(self, owners: Owners, rows: Tensor) -> None:
        """Add what inputs with these rows [R, d] of real numbers contribute; each loss in `owners` has one."""

    def fresh(self) -> Total:
        """The same kind of total, from zero."""
        return type(self)(self.m, self.device, self.dtype)

    @staticmethod
    @abstractmethod
    def visits(blocks: Sequence[Owners]) -> list[tuple[Owners, ...]]:
        """Which blocks of losses have to be walked for together, so that every entry is seen."""

    @abstractmethod
    def paste(self, other: Total, rows: Owners, columns: Owners) -> None:
        """Take over the part for two blocks of losses, each without gaps."""

    @abstractmethod
    def finished(self) -> Tensor:
        """The result."""

    def _dtype_of(self, factor: Factor) -> torch.dtype:
        """Products are formed in float32 at least and in no more than the total keeps."""
        return self._wide(factor.dtype.to_real())

    def _wide(self, real: torch.dtype) -> torch.dtype:
        return torch.promote_types(real, torch.float32) if self.dtype == torch.float32 else self.dtype

    def _is_everyone(self, owners: Owners) -> bool:
        if owners is self._everyone:
            return True
        found = owners.shape == (self.m,) and bool((owners == np.arange(self.m)).all())
        self._everyone = owners if found else self._everyone
        return found

    def _on_device(self, index: Owners | Mask) -> Tensor:
        return index_tensor(index, self.device)


@dataclass(eq=False)
class Gramian(Total):
    """`G = J J^T` [m, m], of which `value` holds the upper half."""

    # The rows added last and their Gram matrix: a linear layer's bias comes right before its weight, with those rows.
    # Dropped with the next addition, after which their memory may be written over.
    latest: tuple[Tensor, Tensor] | None = field(init=False, default=None)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.m, self.m

    def add_share(self, jacobian: Jacobian) -> None:
        found = gram_by_offsets(jacobian.factors, self._dtype_of(jacobian.factors[0])) if jacobian.factors else None
        if found is None:
            super().add_share(jacobian)
        else:
            self.latest = None
            self._add(*found)

    def _add_part(self, part: Part) -> None:
        known, self.latest = self.latest, None
        if len(part) == 1:
            (factor,) = part
            block = factor.gram(self._dtype_of(factor), known)
            self._add(factor.owners, block)
            if isinstance(factor, GivenRows) and block.ndim == 2:
                self.latest = factor.parted, block
        elif by_pairs(part, self._dtype_of(part[0])):
            for n, factor in enumerate(part):
                self._add(factor.owners, factor.gram(self._dtype_of(factor)))
                for other in part[n + 1 :]:
                    self._add(factor.owners, factor.cross(other, self._dtype_of(factor)), other.owners)
        else:
            for owners, rows in stacked_rows(part, self._dtype_of(part[0])):
                self._add(owners, gram_rows(rows, rows.dtype))

    def add_rows(self, owners: Owners, rows: Tensor) -> None:
        self._add(owners, gram_rows(rows, self._wide(rows.dtype)))

    def _add(self, owners: Owners, block: Tensor, columns: Owners | None = None) -> None:
        """`G[owners, columns] += block`, and its transpose. Without `columns` the block is upper triangular.

        Owner -1 means no loss. Blocks [B, R, R] with owners [B, R] are added one by one.
        """
        block = block.to(device=self.device, dtype=self.dtype)
        if columns is None and self._is_everyone(owners):
            self.value.add_(block)
            return
        if block.ndim == 3:
            self._add_apart(owners, block)
            return
        other = owners if columns is None else columns
        mine, theirs = span(owners), span(other)
        if mine is not None and theirs is not None:
            self.value[mine, theirs].add_(block)
            if columns is not None:
                self.value[theirs, mine].add_(block.T)
            return
        if columns is None and (turned := span(owners[::-1])) is not None:
            self.value[turned, turned].add_(block.flip((0, 1)).T)  # as tasks are met, the last one first
            return
        block = mirrored(block) if columns is None else block
        block = self._live(self._live(block, owners).T, other).T
        a, b = self._on_device(owners[owners >= 0]), self._on_device(other[other >= 0])
        self.value.index_put_((a[:, None], b[None, :]), block, accumulate=True)
        if columns is not None:
            self.value.index_put_((b[:, None], a[None, :]), block.T, accumulate=True)

    def _live(self, block: Tensor, owners: Owners) -> Tensor:
        if (owners >= 0).all():
            return block
        return block.index_select(0, index_tensor(np.flatnonzero(owners >= 0), block.device))

    def _add_apart(self, owners: Owners, blocks: Tensor) -> None:
        left = np.broadcast_to(owners[:, :, None], blocks.shape).reshape(-1)
        right = np.broadcast_to(owners[:, None, :], blocks.shape).reshape(-1)
        live = (left >= 0) & (right >= 0)
        flat = blocks.reshape(-1)
        flat = flat if live.all() else flat[self._on_device(live)]
        self.value.index_put_((self._on_device(left[live]), self._on_device(right[live])), flat, accumulate=True)

    @staticmethod
    def visits(blocks: Sequence[Owners]) -> list[tuple[Owners, ...]]:
        """Pairs, for the cross terms; the diagonal blocks come several times, equally."""
        return list(itertools.combinations(blocks, 2))

    def paste(self, other: Total, rows: Owners, columns: Owners) -> None:
        span = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        self.value[span] = other.value[span]

    def finished(self) -> Tensor:
        """G, symmetric to the last bit."""
        return mirrored(self.value)


@dataclass(eq=False)
class Diagonal(Total):
    """The squared norms of the rows of J, [m], without the products of different rows where they can be told apart."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.m,)

    def add_rows(self, owners: Owners, rows: Tensor) -> None:
        self._add_norms(owners, norms_rows(rows, self._wide(rows.dtype)))

    def _add_part(self, part: Part) -> None:
        if _apart(part) or by_pairs(part, self._dtype_of(part[0])):
            for n, factor in enumerate(part):
                self._add_factor(factor)
                for other in part[n + 1 :]:
                    if np.isin(factor.owners, other.owners).any():
                        block = factor.cross(other, self._dtype_of(factor))
                        self._add_products(factor.owners, other.owners, 2 * block)
        else:
            for owners, rows in stacked_rows(part, self._dtype_of(part[0])):
                self._add_rows(owners, rows)

    def _add_factor(self, factor: Factor) -> None:
        dtype = self._dtype_of(factor)
        blocks = factor.owners if factor.owners.ndim == 2 else factor.owners[None]
        if all(len(np.unique(mine[mine >= 0])) == (mine >= 0).sum() for mine in blocks):
            self._add_norms(factor.owners.reshape(-1), factor.norms(dtype).reshape(-1))
            return
        grams = factor.gram(dtype)
        for mine, block in zip(blocks, grams if grams.ndim == 3 else grams[None], strict=True):
            self._add_products(mine, mine, mirrored(block) if grams.ndim == 2 else block)

    def _add_products(self, owners: Owners, columns: Owners, block: Tensor) -> None:
        """Those inner products that are of one loss with itself."""
        same = self._on_device((owners[:, None] == columns[None, :]) & (owners[:, None] >= 0))
        self._add_norms(owners, block.to(device=self.device).masked_fill(~same, 0).sum(1))

    def _add_rows(self, owners: Owners, rows: Tensor) -> None:
        mine, place = np.unique(owners, return_inverse=True)
        if len(mine) < len(owners):
            rows = rows.new_zeros(len(mine), rows.shape[1]).index_add_(0, self._on_device(place.reshape(-1)), rows)
            owners = mine
        self._add_norms(owners, norms_rows(rows, rows.dtype))

    def _add_norms(self, owners: Owners, norms: Tensor) -> None:
        norms = norms.to(device=self.device, dtype=self.dtype)
        if self._is_everyone(owners):
            self.value += norms
            return
        live = np.flatnonzero(owners >= 0)
        self.value.index_add_(0, self._on_device(owners[live]), norms[self._on_device(live)])

    @staticmethod
    def visits(blocks: Sequence[Owners]) -> list[tuple[Owners, ...]]:
        """Each block by itself."""
        return [(block,) for block in blocks]

    def paste(self, other: Total, rows: Owners, columns: Owners) -> None:
        span = slice(int(rows[0]), int(rows[-1]) + 1)
        self.value[span] = other.value[span]

    def finished(self) -> Tensor:
        """The squared norms; rounding may not make one negative."""
        return self.value.clamp_min(0)


def _apart(part: Part) -> bool:
    """Returns True if no loss owns rows of two factors."""
    return len(part) == 1 or sum(len(np.unique(f.owners)) for f in part) == len(
        np.unique(np.concatenate([f.owners.reshape(-1) for f in part]))
    )
