"""Adding a parameter's share to the sum once its last use has been seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from gramjd.engine.consumers.gramian import Sum
from gramjd.engine.cotangent import Cotangent, densify, materialised, unite
from gramjd.engine.factor import Factor, Gathered, Outer, Step, slabs
from gramjd.kernels.gathered import cross_outer_gathered

Region = tuple[tuple[int, ...], tuple[int, ...], int]


def settle(total: Sum, shape: Sequence[int], groups: list[Cotangent], factors: list[Factor]) -> None:
    """Add `J_p J_p^T` for a parameter whose Jacobian is the sum of these groups and factors."""
    if len(factors) == 1 and not groups:
        total.add_factor(factors[0])
        return
    factors = [upright(f, shape) for f in factors]
    regions = [region_of(f, shape) for f in factors]
    if separate(regions) and not (groups and factors):
        for region in dict.fromkeys(regions):
            _one_region(total, [f for f, r in zip(factors, regions, strict=True) if r == region])
    else:
        groups = groups + [materialised(f.rows, f.materialise(total.dtype_of(f))) for f in factors]
    _given_rows(total, groups)


def region_of(factor: Factor, shape: Sequence[int]) -> Region | None:
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


def upright(factor: Factor, shape: Sequence[int]) -> Factor:
    """Turn a matrix that is used transposed, so that all uses speak of the parameter in one orientation."""
    if not isinstance(factor, Outer) or len(factor.shape) != 2:
        return factor
    region = region_of(factor, shape)
    if region is None or len(region[1]) < 2 or region[1][0] >= region[1][1]:
        return factor
    turn = Step(push=lambda t: t.mT, pull=lambda g: g.mT)
    chain = (turn, *factor.chain)
    return replace(factor, shape=factor.shape[::-1], flipped=not factor.flipped, chain=chain)


def separate(regions: Sequence[Region | None]) -> bool:
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


def _one_region(total: Sum, factors: list[Factor]) -> None:
    joined: list[Factor] = []
    for factor in factors:
        for n, mine in enumerate(joined):
            both = mine.join(factor)
            if both is not None:
                joined[n] = both
                break
        else:
            joined.append(factor)
    if len(joined) == 1:
        total.add_factor(joined[0])
    elif tied := _tied(joined):
        _add_tied(total, *tied)
    else:
        _by_slabs(total, joined)


def _add_tied(total: Sum, table: Gathered, head: Outer) -> None:
    """A table that is also a linear layer's weight, without its [m, V, d] rows."""
    total.add_factor(table)
    total.add_factor(head)
    cross = cross_outer_gathered(head.x[0], head.c[:, 0], table.ids, table.c, total.dtype_of(head))
    total.add(head.rows, cross, table.rows)


def _tied(factors: list[Factor]) -> tuple[Gathered, Outer] | None:
    """An embedding and a linear layer that use one table in one orientation."""
    tables = [f for f in factors if isinstance(f, Gathered)]
    heads = [f for f in factors if isinstance(f, Outer) and not f.flipped and f.x.shape[0] == 1]
    if len(factors) != 2 or len(tables) != 1 or len(heads) != 1 or tables[0].shape != heads[0].shape:
        return None
    return tables[0], heads[0]


def _by_slabs(total: Sum, factors: list[Factor]) -> None:
    """Factors of different kinds or rows: form the rows of the sum for a part of the parameter at a time."""
    rows, dtype = np.concatenate([f.rows for f in factors]), total.dtype_of(factors[0])
    if len({f.shape for f in factors}) > 1:
        total.add_rows(rows, torch.cat([f.slab(0, f.shape[0], dtype).flatten(1) for f in factors]))
        return
    for lo, hi in slabs(factors[0].shape, len(rows)):
        total.add_rows(rows, torch.cat([f.slab(lo, hi, dtype).flatten(1) for f in factors]))


def _given_rows(total: Sum, groups: list[Cotangent]) -> None:
    if len(groups) > 1:
        groups = unite(groups)
    if len(groups) > 1:
        groups = unite([densify(g, None) for g in groups])
    for group in groups:
        values = torch.view_as_real(group.values) if group.values.is_complex() else group.values
        layout = group.layout
        if not layout.diagonal:
            total.add_rows(layout.rows, values.reshape(layout.stacked, -1), whole=True)
            continue
        pieces = layout.pieces
        tail = values.reshape(layout.stacked, *(p.size for p in pieces), -1)
        own = [1 + a for a, p in enumerate(pieces) if p.diagonal]
        rest = [1 + a for a, p in enumerate(pieces) if not p.diagonal] + [tail.ndim - 1]
        b = math.prod(pieces[a - 1].size for a in own)
        sliced = tail.permute(*own, 0, *rest).reshape(b, layout.stacked, -1)
        total.add_blocks(layout.rows.reshape(layout.stacked, b), sliced)
