"""Factors: the terms of a parameter's Jacobian, kept unmultiplied until the parameter's last use.

A factor describes the gradient rows of one operand (a matrix `W`, a table, a kernel). It travels from the operation to
the parameter through isometries only (transpose, view, slice, cast), noted in `chain`; anything else multiplies it out.
`GivenRows` are rows that were computed. A factor is a few tensors and the losses that own its rows: it can be kept,
moved to another device, sent to another process, and built again (`tensors`, `with_tensors`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gramjd.engine.cotangent import index_tensor
from gramjd.engine.isometry import TRANSPOSED, Isometry, Region, region_of
from gramjd.engine.layout import Owners, span
from gramjd.kernels import convolution, cost, gathered, norms, outer, patches
from gramjd.kernels import cross as crossing
from gramjd.kernels import weighted as weighting
from gramjd.kernels.symmetric import add_gram, gram
from gramjd.kernels.tracing import tracing

Known = tuple[Tensor, Tensor] | None


def chunks(shape: Sequence[int], rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of the first dimension of an operand, such that its rows' part of each stays in cache."""
    first, *rest = shape or (1,)
    step = max(1, cost.chunk() // max(1, rows * math.prod(rest)))
    return ((lo, min(first, lo + step)) for lo in range(0, first, step))


@dataclass(eq=False)
class Factor:
    """Rows of the Jacobian of an operand of `shape`; `owners` are their losses (-1: none, repeats add up).

    `owners [R]`, or `[B, R]` for B blocks of rows of which rows in different blocks share no element.
    """

    owners: Owners
    shape: tuple[int, ...]
    operation: str
    chain: tuple[Isometry, ...] = field(default=(), kw_only=True)

    NAMES: ClassVar[tuple[str, ...]] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All numbers it holds."""
        return tuple(getattr(self, name) for name in self.NAMES)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Factor:
        """The same factor with other numbers in the same places, as `tensors` gives them."""
        return replace(self, **dict(zip(self.NAMES, tensors, strict=True)))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Factor:
        """The same factor on another device."""
        return self.with_tensors([t.to(device) for t in self.tensors])

    @property
    def dtype(self) -> torch.dtype:
        """What its numbers are stored in."""
        return self.tensors[-1].dtype

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return self.tensors[-1].device

    @property
    def nbytes(self) -> int:
        """Bytes held by it alone: inputs of operations are held by the graph, too."""
        return self.tensors[-1].nbytes

    def rows(self, lo: int, hi: int, dtype: torch.dtype) -> Tensor:
        """[R, hi - lo, *shape[1:]]: the rows' part between two indices of the operand's first dimension."""
        raise NotImplementedError(f"{type(self).__name__} has no rows")

    def gram(self, dtype: torch.dtype, known: Known = None) -> Tensor:
        """[R, R] inner products of the rows, upper (`kernels.symmetric`); [B, R, R] for blocks.

        `known`: a matrix and its Gram matrix, used where it is this factor's cotangent. Here from the rows.
        """
        G = torch.zeros(len(self.owners), len(self.owners), dtype=dtype, device=self.device)
        for lo, hi in chunks(self.shape, len(self.owners)):
            add_gram(G, self.rows(lo, hi, dtype).flatten(1))
        return G

    def norms(self, dtype: torch.dtype) -> Tensor:
        """[R] squared norms of the rows; [B, R] for blocks. Here from the rows."""
        total = torch.zeros(len(self.owners), dtype=dtype, device=self.device)
        for lo, hi in chunks(self.shape, len(self.owners)):
            total += self.rows(lo, hi, dtype).flatten(1).square().sum(1)
        return total

    def weighted(self, w: Tensor) -> Tensor:
        """[*shape]: the rows summed with weights w, shaped like `owners`. Here from the rows."""
        parts = [self.rows(lo, hi, self.dtype) for lo, hi in chunks(self.shape, len(self.owners))]
        return torch.cat([torch.tensordot(w.to(J.dtype), J, 1) for J in parts])

    def plan(self, device: str, dtype: torch.dtype) -> tuple[str, int]:
        """Route and floating-point operations of `gram` on a type of device, in `dtype`."""
        return "rows", 2 * len(self.owners) ** 2 * math.prod(self.shape)

    def samples(self) -> tuple[int, int]:
        """K stacked rows and the length b of the batch axis (1: none)."""
        return len(self.owners), 1

    def join(self, other: Factor) -> Factor | None:
        """Both as one factor (exact cross terms), if their kinds and owners allow."""
        return None

    def cross(self, other: Factor, dtype: torch.dtype) -> Tensor:
        """[R, R'] inner products with the rows of another factor of the same region."""
        block = torch.zeros(len(self.owners), len(other.owners), dtype=dtype, device=self.device)
        for lo, hi in chunks(self.shape, len(self.owners) + len(other.owners)):
            block += self.rows(lo, hi, dtype).flatten(1) @ other.rows(lo, hi, dtype).flatten(1).T
        return block

    def through(self, step: Isometry) -> Factor:
        """The factor one isometry closer to the parameter."""
        return replace(self, chain=(*self.chain, step))

    def upright(self, shape: Sequence[int]) -> Factor:
        """Turned so that all uses of a parameter of `shape` speak of it in one orientation."""
        return self

    def region(self, shape: Sequence[int]) -> Region | None:
        """Which part of the parameter, in which order, the operand is; None if it is no strided part."""
        return region_of(self.chain, tuple(shape))

    def materialise(self, dtype: torch.dtype | None = None) -> Tensor:
        """[R, *shape at the current place], taken back through the chain."""
        return self.back(self.rows(0, self.shape[0] if self.shape else 1, dtype or self.dtype))

    def back(self, values: Tensor) -> Tensor:
        """Rows [R, *] of the operand taken back through the chain to the current place."""
        values = values.reshape(len(values), *self.shape)
        for step in self.chain:
            values = step.pull(values)
        return values

    def combined(self, w: Tensor) -> Tensor:
        """`sum_r w_r J_r` at the current place, for one weight per loss, w [m]."""
        total = self.weighted(weights_of(self.owners, w))
        return self.back(total.unsqueeze(0))[0]

    def describe(self) -> str:
        """The rows in words, as `explain` prints them."""
        K, b = self.samples()
        stacked = f"{K} row{'s' if K > 1 else ''}"
        return f"batch axis {b}, {stacked}" if b > 1 else stacked


def weights_of(owners: Owners, w: Tensor) -> Tensor:
    """The weight of each row's loss, shaped like `owners`; zero for rows of none."""
    flat = owners.reshape(-1)
    if (mine := span(flat)) is not None:
        return w[mine].view(owners.shape)
    if (turned := span(flat[::-1])) is not None:
        return w[turned].flip(0).view(owners.shape)  # as tasks are met, the last one first
    weights = w.index_select(0, index_tensor(np.where(owners >= 0, owners, 0).reshape(-1), w.device))
    weights = weights.view(owners.shape)
    return weights if (owners >= 0).all() else weights * index_tensor(owners >= 0, w.device)


@dataclass(eq=False)
class Outer(Factor):
    """`J_(k,n) = sum_t c_(k,n,t) x_(n,t)^T` per group: x [g, b, T, i], c [K, g, b, T, o].

    `shape` is [o, i], or [i, o] where `flipped`; with g > 1 a leading g.
    """

    x: Tensor
    c: Tensor
    flipped: bool = False

    NAMES = ("x", "c")

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.x.dtype, self.c.dtype)

    def plan(self, device: str, dtype: torch.dtype) -> tuple[str, int]:
        e = outer.extent(self.x, self.c)
        name = outer.route(e, cost.constants_of(device, dtype))
        return name, 2 * outer.operations(name, e)

    def samples(self) -> tuple[int, int]:
        return self.c.shape[0], self.c.shape[2]

    @cached_property
    def _few(self) -> Tensor | None:
        """While a trace is made: the rows [K, o i], if they are fewer numbers than x and c: the update is then free."""
        if tracing() is None or self.dtype.is_complex:
            return None
        g, K, b, T, i, o = outer.extent(self.x, self.c)
        if g * b > 1 or T == 1 or K * i * o > self.x.numel() + self.c.numel():
            return None
        return outer.rows_of_one(self.x, self.c, self.dtype)

    def gram(self, dtype: torch.dtype, known: Known = None) -> Tensor:
        if self._few is not None and dtype == self.dtype:
            return gram(self._few)
        return outer.gram_outer(self.x, self.c, dtype, known)

    def norms(self, dtype: torch.dtype) -> Tensor:
        return norms.norms_outer(self.x, self.c, dtype)

    def weighted(self, w: Tensor) -> Tensor:
        if self._few is not None:
            # A sum of a few, which a compiler joins with what follows.
            total = (w.to(self.dtype).view(-1, 1) * self._few).sum(0).view(self.c.shape[-1], self.x.shape[-1])
        else:
            total = weighting.weighted_outer(self.x, self.c, w)
        return (total.mT if self.flipped else total).reshape(self.shape)

    def rows(self, lo: int, hi: int, dtype: torch.dtype) -> Tensor:
        x, c = self.x, self.c
        if len(self.shape) == 3:
            parts = [self._one(x[g], c[:, g], dtype) for g in range(lo, hi)]
            return torch.stack(parts, dim=1)
        if self.flipped:
            return self._one(x[0, :, :, lo:hi], c[:, 0], dtype)
        return self._one(x[0], c[:, 0, :, :, lo:hi], dtype)

    def _one(self, x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
        J = outer.outer_rows(x, c, dtype).flatten(0, 1)
        return J.mT if self.flipped else J

    def join(self, other: Factor) -> Factor | None:
        """Concatenate along T where owners and orientation agree."""
        if not isinstance(other, Outer) or other.shape != self.shape or self.x.device != other.x.device:
            return None
        turned = other.turned() if other.flipped != self.flipped else other
        if turned is None or turned.c.shape[:3] != self.c.shape[:3] or (turned.owners != self.owners).any():
            return None
        return replace(self, x=torch.cat([self.x, turned.x], dim=2), c=torch.cat([self.c, turned.c], dim=3))

    def turned(self) -> Outer | None:
        """The same rows with x and c in each other's place: possible for K = 1."""
        if self.c.shape[0] != 1:
            return None
        return replace(self, x=self.c[0], c=self.x[None], flipped=not self.flipped)

    def upright(self, shape: Sequence[int]) -> Factor:
        region = self.region(shape) if len(self.shape) == 2 else None
        if region is None or len(region[1]) < 2 or region[1][0] >= region[1][1]:
            return self
        chain = (TRANSPOSED, *self.chain)
        return replace(self, shape=self.shape[::-1], flipped=not self.flipped, chain=chain)

    def cross(self, other: Factor, dtype: torch.dtype) -> Tensor:
        if isinstance(other, Outer):
            turned = other if other.flipped == self.flipped else other.turned()
            if turned is not None:
                return crossing.cross_outer(self.x, self.c, turned.x, turned.c, dtype)
        if isinstance(other, Gathered) and not self.flipped and len(self.shape) == 2:
            return gathered.cross_outer_gathered(self.x[0], self.c[:, 0], other.ids, other.c, dtype)
        return super().cross(other, dtype)


@dataclass(eq=False)
class Gathered(Factor):
    """Row `ids[n, t]` of a table receives c_(k,n,t): ids [b, T], c [K, b, T, d]."""

    ids: Tensor
    c: Tensor

    NAMES = ("ids", "c")

    def plan(self, device: str, dtype: torch.dtype) -> tuple[str, int]:
        K, b, T, d = self.c.shape
        R, U = K * b, len(torch.unique(self.ids))
        name = gathered.route(R, T, U, d, cost.constants_of(device, dtype))
        return name, 2 * ((R * T) ** 2 if name == "pairwise" else R * R * U) * d

    def samples(self) -> tuple[int, int]:
        return self.c.shape[0], self.c.shape[1]

    def gram(self, dtype: torch.dtype, known: Known = None) -> Tensor:
        return gathered.gram_gathered(self.ids, self.c, dtype)

    def norms(self, dtype: torch.dtype) -> Tensor:
        return norms.norms_gathered(self.ids, self.c, dtype)

    def weighted(self, w: Tensor) -> Tensor:
        return weighting.weighted_gathered(self.ids, self.c, w, self.shape[0])

    def rows(self, lo: int, hi: int, dtype: torch.dtype) -> Tensor:
        return gathered.gathered_rows(self.ids, self.c, lo, hi, dtype)

    def join(self, other: Factor) -> Factor | None:
        if not isinstance(other, Gathered) or other.shape != self.shape:
            return None
        if other.c.shape[:2] != self.c.shape[:2] or (other.owners != self.owners).any():
            return None
        return replace(self, ids=torch.cat([self.ids, other.ids], 1), c=torch.cat([self.c, other.c], 2))

    def cross(self, other: Factor, dtype: torch.dtype) -> Tensor:
        if isinstance(other, Gathered):
            return crossing.cross_gathered(self.ids, self.c, other.ids, other.c, dtype)
        if isinstance(other, Outer):
            return other.cross(self, dtype).T
        return super().cross(other, dtype)


@dataclass(eq=False)
class Convolution(Factor):
    """A convolution's weight [groups o, i, *kernel]; of a transposed one [groups i, o, *kernel].

    x [b, channels, *spatial] is the input, c [K, b, channels, *spatial] the cotangent of the output.
    """

    x: Tensor
    c: Tensor
    options: dict[str, Any]
    transposed: bool = False

    NAMES = ("x", "c")

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.x.dtype, self.c.dtype)

    def plan(self, device: str, dtype: torch.dtype) -> tuple[str, int]:
        sizes = convolution.sizes(*self._operands())
        name = convolution.route(sizes, cost.constants_of(device, dtype))
        return name, 2 * convolution.operations(name, sizes)

    def samples(self) -> tuple[int, int]:
        return self.c.shape[0], self.c.shape[1]

    def gram(self, dtype: torch.dtype, known: Known = None) -> Tensor:
        return convolution.gram_convolution(*self._operands(), dtype)

    def _operands(self) -> tuple[Tensor, Tensor, convolution.Window]:
        x, c = (self.c, self.x[None]) if self.transposed else (self.x, self.c)
        return x, c, convolution.Window(self.shape[2:], **self.options)

    def norms(self, dtype: torch.dtype) -> Tensor:
        return norms.norms_convolution(*self._operands(), dtype)

    def weighted(self, w: Tensor) -> Tensor:
        return weighting.weighted_convolution(self.x, self.c, w, self.shape, self.transposed, self.options)

    def rows(self, lo: int, hi: int, dtype: torch.dtype) -> Tensor:
        x, c, window = self._operands()
        whole = window.groups > 1
        J = patches.convolution_rows(x, c if whole else c[:, :, lo:hi], *window, dtype=dtype)
        J = J.reshape(len(self.owners), -1, *self.shape[1:])
        return J[:, lo:hi] if whole else J

    def serves_as_rows(self, dtype: torch.dtype) -> bool:
        """Returns True where the rows, which `gram` forms in `dtype`, are about as many numbers as the cotangents.

        On a CPU alone: elsewhere nothing is measured. In a trace a compiler decides what is formed once.
        """
        if self.transposed or self.dtype != dtype or self.device.type != "cpu" or tracing() is not None:
            return False
        x, c, window = self._operands()
        fewer = len(self.owners) * math.prod(self.shape) <= 1.25 * c.numel()
        return fewer and convolution.route(convolution.sizes(x, c, window), cost.constants_of("cpu", dtype)) == "rows"

    def all_rows(self, dtype: torch.dtype) -> Tensor:
        """[R, *shape]."""
        x, c, window = self._operands()
        return convolution.all_rows(x, c, window, dtype).reshape(len(self.owners), *self.shape)
