"""Given rows: the factor of what was computed as rows, and how several of them become one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gramjd.engine.cotangent import Cotangent, densify
from gramjd.engine.factor import Factor, Known
from gramjd.engine.layout import Layout, Owners
from gramjd.engine.unite import unite
from gramjd.kernels import norms
from gramjd.kernels import rows as given_rows


@dataclass(eq=False)
class GivenRows(Factor):
    """Rows that were computed: `values [K, *shape]` with a layout, of a whole parameter.

    Where a batch axis is left, losses own disjoint slices of the parameter: one block of rows per slice.
    """

    values: Tensor
    layout: Layout

    NAMES = ("values",)

    @classmethod
    def of(cls, cotangent: Cotangent, values: Tensor) -> GivenRows:
        """What a cotangent with these values is at a parameter."""
        layout = cotangent.layout
        return cls(_blocks(layout), cotangent.shape, cotangent.operation, values, layout)

    def plan(self, device: str, dtype: torch.dtype) -> tuple[str, int]:
        route = "own slices" if self.layout.diagonal else "rows"
        return route, 2 * self.layout.stacked * self.values.numel()

    def samples(self) -> tuple[int, int]:
        return self.layout.stacked, math.prod(self.layout.owners.shape[1:])

    def describe(self) -> str:
        return self.layout.describe()

    @cached_property
    def parted(self) -> Tensor:
        """Real numbers: [R, d], or [B, R, d] for blocks."""
        layout = self.layout
        values = torch.view_as_real(self.values) if self.values.is_complex() else self.values
        if not layout.diagonal:
            return values.reshape(layout.stacked, -1)
        pieces = layout.pieces
        split = values.reshape(layout.stacked, *(p.size for p in pieces), -1)
        own = [1 + a for a, p in enumerate(pieces) if p.diagonal]
        rest = [1 + a for a, p in enumerate(pieces) if not p.diagonal] + [split.ndim - 1]
        b = math.prod(pieces[a - 1].size for a in own)
        return split.permute(*own, 0, *rest).reshape(b, layout.stacked, -1)

    def gram(self, dtype: torch.dtype, known: Known = None) -> Tensor:
        J, dtype = self.parted, torch.promote_types(self.parted.dtype, dtype)
        return given_rows.gram_own_slices(J, dtype) if J.ndim == 3 else given_rows.gram_rows(J, dtype)

    def norms(self, dtype: torch.dtype) -> Tensor:
        J = self.parted
        found = norms.norms_rows(J.flatten(0, -2), torch.promote_types(J.dtype, dtype))
        return found.view(J.shape[:-1])

    def weighted(self, w: Tensor) -> Tensor:
        layout, values = self.layout, self.values
        if not layout.diagonal:
            return (w.to(values.dtype) @ values.reshape(layout.stacked, -1)).view(self.shape)
        sizes = [p.size for p in layout.pieces]
        shape = [layout.stacked, *(p.size if p.diagonal else 1 for p in layout.pieces)]
        spread = w.T.reshape(shape).to(values.dtype)
        return (spread * values.reshape(layout.stacked, *sizes)).sum(0).view(self.shape)

    def rows(self, lo: int, hi: int, dtype: torch.dtype) -> Tensor:
        values = self.values.to(torch.promote_types(self.values.dtype, dtype))
        return values[:, lo:hi] if self.shape else values.unsqueeze(1)

    @cached_property
    def dense(self) -> GivenRows:
        """The same rows without a batch axis."""
        return self if not self.layout.diagonal else united([self], whole=True)[0]

    def join(self, other: Factor) -> Factor | None:
        """Added, or stacked, where the layouts allow."""
        return united([self, other], whole=True)[0] if isinstance(other, GivenRows) else None


def _blocks(layout: Layout) -> Owners:
    """[K], or [b, K] where slices are owned apart."""
    owners = layout.owners
    return owners.reshape(layout.stacked, -1).T if layout.diagonal else owners


def united(given: Sequence[GivenRows], whole: bool = False) -> list[GivenRows]:
    """As few as the layouts allow; one without a batch axis, if need be, where `whole` is True."""
    cotangents = [Cotangent.of(g.layout, g.values, operation=g.operation) for g in given]
    found = unite(cotangents)
    if whole and (len(found) > 1 or len(given) == 1):
        found = unite([densify(c, None) for c in found])
    out = [GivenRows.of(c, c.values) for c in found]
    for c in cotangents:
        c.drop()
    return out
