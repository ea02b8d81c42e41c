"""A parameter's Jacobian: the sum of its factors, joined and cut into parts that can be treated one by one.

Uses of one parameter have cross terms. Factors of one kind with the same owners become one; a table that is an
embedding and a head has a formula of its own; rows of any two factors of one region can be formed chunk by chunk.
A Gramian and its diagonal are made of these parts; an update is the sum of what each factor gives, and a rectangle the
sum over pairs of factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gramjd.engine.cotangent import by_loss as rows_of
from gramjd.engine.factor import Convolution, Factor, Gathered, Outer, chunks
from gramjd.engine.given import GivenRows, united
from gramjd.engine.isometry import separate
from gramjd.engine.layout import Owners, dense
from gramjd.engine.segments import by_loss, rows_by_loss
from gramjd.kernels import cost, outer, ragged

Part = list[Factor]


@dataclass
class Jacobian:
    """The Jacobian of a parameter of `shape` as a sum of factors."""

    shape: tuple[int, ...]
    factors: list[Factor] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes that its factors hold."""
        return sum(f.nbytes for f in self.factors)

    def losses(self) -> set[int]:
        """The losses that own a row."""
        return {int(i) for f in self.factors for i in np.unique(f.owners) if i >= 0}

    def to(self, device: torch.device) -> Jacobian:
        """The same on another device."""
        return Jacobian(self.shape, [f.to(device) for f in self.factors])

    def combined(self, w: Tensor) -> Tensor:
        """`J^T w`, shaped like the parameter, for one weight per loss."""
        first, *rest = [f.combined(w) for f in self.factors]
        for more in rest:
            first = first + more
        return first.reshape(self.shape)

    def settled(self, dtype: torch.dtype) -> Jacobian:
        """The same for G and an update: rows that both need are formed once, where they are hardly more to keep.

        Those of a convolution over a large image are fewer numbers than its cotangents.
        """
        factor = self.factors[0] if len(self.factors) == 1 else None
        if not isinstance(factor, Convolution) or not factor.serves_as_rows(dtype):
            return self
        values = factor.back(factor.all_rows(dtype))
        layout = dense(factor.owners, math.prod(values.shape[1:]))
        return Jacobian(
            self.shape, [GivenRows(factor.owners, tuple(values.shape[1:]), factor.operation, values, layout)]
        )

    def parts(self, dtype: torch.dtype) -> list[Part]:
        """The factors in groups whose rows share no element: products of rows of different groups are zero.

        Factors of one group speak of the same region of the parameter in the same order. Where regions overlap in
        another way, rows are formed (in `dtype`) and are one group.
        """
        if len(self.factors) == 1:
            return [by_loss(self.factors)]
        factors = [f.upright(self.shape) for f in self.factors]
        if all(isinstance(f, GivenRows) for f in factors):
            return [[rows] for rows in _given(factors)]
        regions = [f.region(self.shape) for f in factors]
        if any(isinstance(f, GivenRows) for f in factors) or not separate(regions):
            return [[rows] for rows in _given([self._rows(f, dtype) for f in factors])]
        return [
            by_loss(_joined([f for f, mine in zip(factors, regions, strict=True) if mine == region]))
            for region in dict.fromkeys(regions)
        ]

    def _rows(self, factor: Factor, dtype: torch.dtype) -> GivenRows:
        if isinstance(factor, GivenRows):
            return factor
        layout, _ = rows_of(factor.owners, math.prod(self.shape))
        wide = torch.promote_types(factor.dtype, dtype)
        values = rows_by_loss(factor, layout.owners, wide).reshape(-1, *self.shape)
        return GivenRows(layout.owners, self.shape, factor.operation, values, layout)


def _given(factors: Sequence[Factor]) -> list[GivenRows]:
    """Given rows, united: one, or several whose products are taken care of by their owners."""
    found = united([f for f in factors if isinstance(f, GivenRows)])
    return found if len(found) == 1 else united(found, whole=True)


def _joined(factors: Sequence[Factor]) -> Part:
    joined: Part = []
    for factor in factors:
        for n, mine in enumerate(joined):
            both = mine.join(factor)
            if both is not None:
                joined[n] = both
                break
        else:
            joined.append(factor)
    return joined


def by_pairs(part: Part, dtype: torch.dtype) -> bool:
    """Returns True if products of each pair of factors are quicker than those of all rows.

    Rows of a table are never formed where a formula does without: never [m, V, d] rows of an embedding and a head that
    use one table.
    """
    if len({f.shape for f in part}) > 1:
        return False
    if any(isinstance(f, Gathered) for f in part):
        return all(isinstance(f, Gathered) or _is_head(f) for f in part)
    if len({f.flipped if isinstance(f, Outer) else None for f in part}) > 1 or not isinstance(part[0], Outer):
        return False
    return route_of(part, part[0].device.type, dtype)[0] == "pairs"


def route_of(part: Part, device: str, dtype: torch.dtype) -> tuple[str, int]:
    """Route and floating-point operations for several products, such as those of losses with few and many tokens."""
    extents = tuple(outer.extent(f.x, f.c) for f in part if isinstance(f, Outer))
    known = cost.constants_of(device, dtype)
    name = ragged.route(extents, known)
    return name, 2 * ragged.operations(name, extents, known)


def plan_of(factor: Factor, device: str, dtype: torch.dtype) -> tuple[str, int]:
    """Route and floating-point operations of a factor's own products, its rows added up by loss."""
    part = by_loss([factor])
    if len(part) == 1:
        return part[0].plan(device, dtype)
    if isinstance(factor, Outer):
        return route_of(part, device, dtype)
    plans = [one.plan(device, dtype) for one in part]
    rows = sum(len(one.owners) for one in part)
    # Products of rows of two factors take as many operations as those of the same number of rows of one.
    own = sum(len(one.owners) ** 2 for one in part)
    return plans[0][0], sum(operations for _, operations in plans) * rows**2 // own


def _is_head(factor: Factor) -> bool:
    return isinstance(factor, Outer) and not factor.flipped and factor.x.shape[0] == 1


def stacked_rows(part: Part, dtype: torch.dtype) -> Iterator[tuple[Owners, Tensor]]:
    """The rows [R, *] of several factors of one region with their owners, for a chunk of the region at a time."""
    owners = np.concatenate([f.owners for f in part])
    if len({f.shape for f in part}) > 1:
        yield owners, torch.cat([f.rows(0, f.shape[0], dtype).flatten(1) for f in part])
        return
    for lo, hi in chunks(part[0].shape, len(owners)):
        yield owners, torch.cat([f.rows(lo, hi, dtype).flatten(1) for f in part])
