"""Adding a parameter's share to the Gramian once its last use has been seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gramjd.engine.cotangent import Group, densify, materialised, unite
from gramjd.engine.factors import Factor, Gathered, Outer, Step
from gramjd.engine.rows import Rows
from gramjd.kernels.gathered import cross_outer_gathered
from gramjd.kernels.outer import SLAB
from gramjd.kernels.rows import gram_own_slices, gram_rows

Region = tuple[tuple[int, ...], tuple[int, ...], int]


@dataclass
class Gramian:
    """The m x m sum, in float32 at least."""

    m: int
    device: torch.device
    dtype: torch.dtype
    value: Tensor = field(init=False)
    # The rows added last and their Gram matrix: a linear layer's bias comes right before its weight, with those rows.
    latest: tuple[Tensor, Tensor] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Start from zero."""
        self.value = torch.zeros(self.m, self.m, dtype=self.dtype, device=self.device)
        self._everyone = np.arange(self.m)

    def add(self, rows: Rows, block: Tensor, columns: Rows | None = None) -> None:
        """`G[rows, columns] += block`, and its transpose where columns are given; -1 is nobody."""
        block = block.to(device=self.device, dtype=self.dtype)
        if columns is None and len(rows) == self.m and (rows == self._everyone).all():
            self.value += block
            return
        other = rows if columns is None else columns
        block = self._live(self._live(block, rows).T, other).T
        a, b = self._index(rows), self._index(other)
        self.value.index_put_((a[:, None], b[None, :]), block, accumulate=True)
        if columns is not None:
            self.value.index_put_((b[:, None], a[None, :]), block.T, accumulate=True)

    def add_blocks(self, rows: Rows, blocks: Tensor) -> None:
        """`G[rows[:, n], rows[:, n]] += blocks[n]` for rows [K, b] and blocks [b, K, K]."""
        K, b = rows.shape
        left = np.broadcast_to(rows.T[:, :, None], (b, K, K)).reshape(-1)
        right = np.broadcast_to(rows.T[:, None, :], (b, K, K)).reshape(-1)
        live = (left >= 0) & (right >= 0)
        flat = blocks.to(device=self.device, dtype=self.dtype).reshape(-1)
        flat = flat if live.all() else flat[torch.from_numpy(live).to(self.device)]
        index = (torch.from_numpy(side[live]).to(self.device) for side in (left, right))
        self.value.index_put_(tuple(index), flat, accumulate=True)

    def _live(self, block: Tensor, rows: Rows) -> Tensor:
        if (rows >= 0).all():
            return block
        return block.index_select(0, torch.from_numpy(np.flatnonzero(rows >= 0)).to(block.device))

    def _index(self, rows: Rows) -> Tensor:
        return torch.from_numpy(rows[rows >= 0]).to(self.device)

    def finished(self) -> Tensor:
        """G, symmetric to the last bit."""
        return (self.value + self.value.T).mul_(0.5)


def settle(gramian: Gramian, shape: Sequence[int], groups: list[Group], factors: list[Factor]) -> None:
    """Add `J_p J_p^T` for a parameter whose Jacobian is the sum of these groups and factors."""
    if len(factors) == 1 and not groups:
        (factor,) = factors
        gramian.add(factor.rows, factor.gram(gramian_dtype(factor, gramian), gramian.latest))
        gramian.latest = None
        return
    factors = [_upright(f, shape) for f in factors]
    regions = [_region(f, shape) for f in factors]
    if _separate(regions) and not (groups and factors):
        for region in dict.fromkeys(regions):
            _one_region(gramian, [f for f, r in zip(factors, regions, strict=True) if r == region])
    else:
        groups = groups + [materialised(f.rows, f.materialise(gramian_dtype(f, gramian))) for f in factors]
    _given_rows(gramian, groups)


def gramian_dtype(factor: Factor, gramian: Gramian) -> torch.dtype:
    """Products are formed in float32 at least and in no more than the Gramian keeps."""
    return torch.promote_types(factor.dtype, torch.float32) if gramian.dtype == torch.float32 else gramian.dtype


def _region(factor: Factor, shape: Sequence[int]) -> Region | None:
    """Which part of the parameter, in which order, the factor's operand is; None where it is no strided part."""
    place = torch.empty(tuple(shape), device="meta")
    try:
        for step in reversed(factor.chain):
            place = step.push(place)
    except RuntimeError:
        return None
    sizes = [n for n in place.shape if n != 1]
    return (
        tuple(sizes),
        tuple(int(s) for n, s in zip(place.shape, place.stride(), strict=True) if n != 1),
        int(place.storage_offset()),
    )


def _upright(factor: Factor, shape: Sequence[int]) -> Factor:
    """Turn a matrix that is used transposed, so that all uses speak of the parameter in one orientation."""
    if not isinstance(factor, Outer) or len(factor.shape) != 2:
        return factor
    region = _region(factor, shape)
    if region is None or len(region[1]) < 2 or region[1][0] >= region[1][1]:
        return factor
    turn = Step(push=lambda t: t.mT, pull=lambda g: g.mT)
    chain = (turn, *factor.chain)
    return replace(factor, shape=factor.shape[::-1], flipped=not factor.flipped, chain=chain)


def _separate(regions: Sequence[Region | None]) -> bool:
    """Whether any two regions are the same or share no element."""
    spans = []
    if None in regions:
        return len(regions) == 1
    for region in dict.fromkeys(regions):
        assert region is not None
        sizes, strides, offset = region
        spans.append((offset, offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))))
    spans.sort()
    return all(a[1] < b[0] for a, b in itertools.pairwise(spans))


def _one_region(gramian: Gramian, factors: list[Factor]) -> None:
    joined: list[Factor] = []
    for factor in factors:
        for n, mine in enumerate(joined):
            both = mine.join(factor)
            if both is not None:
                joined[n] = both
                break
        else:
            joined.append(factor)
    dtype = gramian_dtype(joined[0], gramian)
    if len(joined) == 1:
        gramian.add(joined[0].rows, joined[0].gram(dtype))
    elif tied := _tied(joined):
        _add_tied(gramian, *tied, dtype)
    else:
        _by_slabs(gramian, joined, dtype)


def _add_tied(gramian: Gramian, table: Gathered, head: Outer, dtype: torch.dtype) -> None:
    """A table that is also a linear layer's weight, without its [m, V, d] rows."""
    gramian.add(table.rows, table.gram(dtype))
    gramian.add(head.rows, head.gram(dtype))
    cross = cross_outer_gathered(head.x[0], head.c[:, 0], table.ids, table.c, dtype)
    gramian.add(head.rows, cross, table.rows)


def _tied(factors: list[Factor]) -> tuple[Gathered, Outer] | None:
    """An embedding and a linear layer that use one table in one orientation."""
    tables = [f for f in factors if isinstance(f, Gathered)]
    heads = [f for f in factors if isinstance(f, Outer) and not f.flipped and f.x.shape[0] == 1]
    if len(factors) != 2 or len(tables) != 1 or len(heads) != 1 or tables[0].shape != heads[0].shape:
        return None
    return tables[0], heads[0]


def _by_slabs(gramian: Gramian, factors: list[Factor], dtype: torch.dtype) -> None:
    """Factors of different kinds or rows: form the rows of the sum for a part of the parameter at a time."""
    rows = np.concatenate([f.rows for f in factors])
    shapes = {f.shape for f in factors}
    first = factors[0].shape
    if len(shapes) > 1:
        J = torch.cat([f.slab(0, f.shape[0], dtype).flatten(1) for f in factors])
        gramian.add(rows, gram_rows(J, dtype))
        return
    step = max(1, SLAB // max(1, len(rows) * math.prod(first[1:])))
    for lo in range(0, first[0], step):
        J = torch.cat([f.slab(lo, min(first[0], lo + step), dtype).flatten(1) for f in factors])
        gramian.add(rows, gram_rows(J, dtype))


def _given_rows(gramian: Gramian, groups: list[Group]) -> None:
    if len(groups) > 1:
        groups = unite(groups)
    if len(groups) > 1:
        groups = unite([densify(g, None) for g in groups])
    for group in groups:
        values = torch.view_as_real(group.values) if group.values.is_complex() else group.values
        dtype = torch.promote_types(values.dtype, gramian.dtype)
        layout = group.layout
        if not layout.diagonal:
            J = values.reshape(layout.stacked, -1)
            block = gram_rows(J, dtype)
            gramian.add(layout.rows, block)
            gramian.latest = (J, block)
            continue
        pieces = layout.pieces
        tail = values.reshape(layout.stacked, *(p.size for p in pieces), -1)
        own = [1 + a for a, p in enumerate(pieces) if p.diagonal]
        rest = [1 + a for a, p in enumerate(pieces) if not p.diagonal] + [tail.ndim - 1]
        b = math.prod(pieces[a - 1].size for a in own)
        sliced = tail.permute(*own, 0, *rest).reshape(b, layout.stacked, -1)
        gramian.add_blocks(layout.rows.reshape(layout.stacked, b), gram_own_slices(sliced, dtype))
