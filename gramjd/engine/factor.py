"""Factors: the rows of a parameter's Jacobian as sums of products, kept unmultiplied until the parameter's last use.

A factor describes the gradient of one operand (a matrix `W`, a table, a kernel). It travels from the operation to the
parameter through isometries only (transpose, view, slice, cast), which are noted in `chain`; anything else multiplies
it out (`Factor.materialise`). Every factor can form a slab of its rows, so factors of any kind can be combined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gramjd.engine.layout import Rows
from gramjd.kernels import convolution, cost, gathered, norms, outer, patches
from gramjd.kernels import weighted as weighting

Known = tuple[Tensor, Tensor] | None


def slabs(shape: Sequence[int], rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of the first dimension of an operand, such that its rows' part of each stays in cache."""
    step = max(1, cost.slab() // max(1, rows * math.prod(shape[1:])))
    return ((lo, min(shape[0], lo + step)) for lo in range(0, shape[0], step))


class Step(NamedTuple):
    """One isometry between a parameter and the operation: `push` forwards, `pull` takes row gradients [R, *] back."""

    push: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Factor:
    """Rows of the Jacobian of an operand of `shape`; `rows [R]` are their losses (-1: none, repeats add up)."""

    rows: Rows
    shape: tuple[int, ...]
    operation: str
    chain: tuple[Step, ...] = field(default=(), kw_only=True)

    @property
    def dtype(self) -> torch.dtype:
        """What its numbers are stored in."""
        raise TypeError("an abstract factor")

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        raise TypeError("an abstract factor")

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        raise TypeError("an abstract factor")

    @property
    def dry(self) -> bool:
        """Whether it holds no numbers (a walk that only plans)."""
        raise TypeError("an abstract factor")

    def gram(self, dtype: torch.dtype, known: Known = None) -> Tensor:
        """[R, R] inner products of the rows, upper (`kernels.symmetric`).

        `known`: some rows and their inner products, in case they are needed.
        """
        raise TypeError("an abstract factor")

    def norms(self, dtype: torch.dtype) -> Tensor:
        """[R] squared norms of the rows."""
        raise TypeError("an abstract factor")

    def weighted(self, w: Tensor) -> Tensor:
        """[*shape]: the rows summed with weights w [R]."""
        raise TypeError("an abstract factor")

    def slab(self, lo: int, hi: int, dtype: torch.dtype) -> Tensor:
        """[R, hi - lo, *shape[1:]]: the rows' part between two indices of the operand's first dimension."""
        raise TypeError("an abstract factor")

    def join(self, other: Factor) -> Factor | None:
        """Both as one factor (exact cross terms), if their kinds and rows allow."""
        return None

    def through(self, step: Step) -> Factor:
        """The factor one isometry closer to the parameter."""
        return replace(self, chain=(*self.chain, step))

    def materialise(self, dtype: torch.dtype | None = None) -> Tensor:
        """[R, *shape at the current place], taken back through the chain."""
        return self.back(self.slab(0, self.shape[0], dtype or self.dtype))

    def back(self, values: Tensor) -> Tensor:
        """Rows [R, *] of the operand taken back through the chain to the current place."""
        values = values.reshape(len(values), *self.shape)
        for step in self.chain:
            values = step.pull(values)
        return values

    def plan(self, device: str, dtype: torch.dtype) -> tuple[str, int]:
        """Route and operations of `gram` on a type of device, in `dtype`."""
        raise TypeError("an abstract factor")

    def samples(self) -> tuple[int, int]:
        """K stacked rows and the length b of the batch axis (1: none)."""
        raise TypeError("an abstract factor")

    def describe(self) -> str:
        """The rows in words, as `explain` prints them."""
        K, b = self.samples()
        stacked = f"{K} row{'s' if K > 1 else ''}"
        return f"batch axis {b}, {stacked}" if b > 1 else stacked


@dataclass(frozen=True)
class Product(Factor):
    """Rows that are products of an input `x` and a cotangent `c`."""

    x: Tensor
    c: Tensor

    @property
    def dtype(self) -> torch.dtype:  # noqa: D102
        return torch.promote_types(self.x.dtype, self.c.dtype)

    @property
    def device(self) -> torch.device:  # noqa: D102
        return self.c.device

    @property
    def nbytes(self) -> int:  # noqa: D102
        return self.c.nbytes

    @property
    def dry(self) -> bool:  # noqa: D102
        return self.c.is_meta


@dataclass(frozen=True)
class Outer(Product):
    """`J_(k,n) = sum_t c_(k,n,t) x_(n,t)^T` per group: x [g, b, T, i], c [K, g, b, T, o].

    `shape` is [o, i], or [i, o] where `flipped`; with g > 1 a leading g.
    """

    flipped: bool = False

    def plan(self, device: str, dtype: torch.dtype) -> tuple[str, int]:  # noqa: D102
        e = outer.extent(self.x, self.c)
        name = outer.route(e, cost.constants_of(device, dtype))
        return name, 2 * outer.operations(name, e)

    def samples(self) -> tuple[int, int]:  # noqa: D102
        return self.c.shape[0], self.c.shape[2]

    def gram(self, dtype: torch.dtype, known: Known = None) -> Tensor:  # noqa: D102
        return outer.gram_outer(self.x, self.c, dtype, known)

    def norms(self, dtype: torch.dtype) -> Tensor:  # noqa: D102
        return norms.norms_outer(self.x, self.c, dtype)

    def weighted(self, w: Tensor) -> Tensor:  # noqa: D102
        total = weighting.weighted_outer(self.x, self.c, w)
        return (total.mT if self.flipped else total).reshape(self.shape)

    def slab(self, lo: int, hi: int, dtype: torch.dtype) -> Tensor:  # noqa: D102
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
        """Concatenate along T where rows and orientation agree."""
        if not isinstance(other, Outer) or other.shape != self.shape or self.x.device != other.x.device:
            return None
        turned = other.turned() if other.flipped != self.flipped else other
        if turned is None or turned.c.shape[:3] != self.c.shape[:3] or (turned.rows != self.rows).any():
            return None
        if self.dry:
            return replace(self, x=self.x.to("meta"), c=torch.cat([self.c, turned.c], dim=3))
        return replace(self, x=torch.cat([self.x, turned.x], dim=2), c=torch.cat([self.c, turned.c], dim=3))

    def turned(self) -> Outer | None:
        """The same rows with x and c in each other's place: possible for K = 1."""
        if self.c.shape[0] != 1:
            return None
        return replace(self, x=self.c[0], c=self.x[None], flipped=not self.flipped)


@dataclass(frozen=True)
class Gathered(Factor):
    """Row `ids[n, t]` of a table receives c_(k,n,t): ids [b, T], c [K, b, T, d]."""

    ids: Tensor
    c: Tensor

    @property
    def dtype(self) -> torch.dtype:  # noqa: D102
        return self.c.dtype

    @property
    def device(self) -> torch.device:  # noqa: D102
        return self.c.device

    @property
    def nbytes(self) -> int:  # noqa: D102
        return self.c.nbytes

    @property
    def dry(self) -> bool:  # noqa: D102
        return self.c.is_meta

    def plan(self, device: str, dtype: torch.dtype) -> tuple[str, int]:  # noqa: D102
        K, b, T, d = self.c.shape
        R, U = K * b, len(torch.unique(self.ids))
        name = gathered.route(R, T, U, d)
        return name, 2 * ((R * T) ** 2 if name == "pairwise" else R * R * U) * d

    def samples(self) -> tuple[int, int]:  # noqa: D102
        return self.c.shape[0], self.c.shape[1]

    def gram(self, dtype: torch.dtype, known: Known = None) -> Tensor:  # noqa: D102
        return gathered.gram_gathered(self.ids, self.c, dtype)

    def norms(self, dtype: torch.dtype) -> Tensor:  # noqa: D102
        return norms.norms_gathered(self.ids, self.c, dtype)

    def weighted(self, w: Tensor) -> Tensor:  # noqa: D102
        return weighting.weighted_gathered(self.ids, self.c, w, self.shape[0])

    def slab(self, lo: int, hi: int, dtype: torch.dtype) -> Tensor:  # noqa: D102
        return gathered.gathered_rows(self.ids, self.c, lo, hi, dtype)

    def join(self, other: Factor) -> Factor | None:  # noqa: D102
        if not isinstance(other, Gathered) or other.shape != self.shape or self.dry:
            return None
        if other.c.shape[:2] != self.c.shape[:2] or (other.rows != self.rows).any():
            return None
        return replace(self, ids=torch.cat([self.ids, other.ids], 1), c=torch.cat([self.c, other.c], 2))


@dataclass(frozen=True)
class Convolution(Product):
    """A convolution's weight [groups o, i, *kernel]; of a transposed one [groups i, o, *kernel].

    x [b, channels, *spatial] is the input, c [K, b, channels, *spatial] the cotangent of the output.
    """

    options: dict[str, Any]
    transposed: bool = False

    def plan(self, device: str, dtype: torch.dtype) -> tuple[str, int]:  # noqa: D102
        sizes = convolution.sizes(*self._operands())
        name = convolution.route(sizes, cost.constants_of(device, dtype))
        return name, 2 * convolution.operations(name, sizes)

    def samples(self) -> tuple[int, int]:  # noqa: D102
        return self.c.shape[0], self.c.shape[1]

    def gram(self, dtype: torch.dtype, known: Known = None) -> Tensor:  # noqa: D102
        return convolution.gram_convolution(*self._operands(), dtype)

    def _operands(self) -> tuple[Tensor, Tensor, convolution.Window]:
        x, c = (self.c, self.x[None]) if self.transposed else (self.x, self.c)
        return x, c, convolution.Window(self.shape[2:], **self.options)

    def norms(self, dtype: torch.dtype) -> Tensor:  # noqa: D102
        return norms.norms_convolution(*self._operands(), dtype)

    def weighted(self, w: Tensor) -> Tensor:  # noqa: D102
        return weighting.weighted_convolution(self.x, self.c, w, self.shape, self.transposed, self.options)

    def slab(self, lo: int, hi: int, dtype: torch.dtype) -> Tensor:  # noqa: D102
        x, c, window = self._operands()
        whole = window.groups > 1
        J = patches.convolution_rows(x, c if whole else c[:, :, lo:hi], *window, dtype=dtype)
        J = J.reshape(len(self.rows), -1, *self.shape[1:])
        return J[:, lo:hi] if whole else J


Factors = list[Factor]
