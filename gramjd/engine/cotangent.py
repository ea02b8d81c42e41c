"""Cotangents: values with a layout; how they meet, spread over rows, and are summed to a smaller shape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gramjd.engine.layout import Layout, Piece, Rows, Shape, canonical, dense, overlay, placed, remembered, split
from gramjd.kernels.cost import slab

Charge = Callable[[int], None]


@dataclass
class Cotangent:
    """`values [K, *shape]` whose slices belong to losses as `layout` says. `values` is on `meta` in a dry walk.

    `operation` names the node that sent it. `owned` says that nobody else refers to the memory of `values`, so that
    whoever receives the group may write over it. `reserved` is memory for further rows, which `values` is the start of.
    """

    layout: Layout
    values: Tensor
    operation: str = ""
    owned: bool = False
    reserved: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """The shape of one row."""
        return self.values.shape[1:]


def added(one: Cotangent, other: Cotangent) -> Cotangent:
    """The sum of two groups of one layout, in the memory of one that is owned if there is one."""
    for into, more in ((one, other), (other, one)):
        if into.owned and into.values.is_contiguous():
            into.values.add_(more.values)
            return into
    return Cotangent(one.layout, one.values + other.values, one.operation, owned=True)


def appended(one: Cotangent, other: Cotangent, more: int, charge: Charge) -> Cotangent | None:
    """`one` with the rows of `other` after its own, in memory that is reserved for `more` rows the first time.

    Joined when all have arrived, rows would be there twice for a moment. None where that is no loss, as they are small,
    and where they cannot simply stand one after the other.
    """
    held, count = one.layout.stacked, other.layout.stacked
    if one.layout.diagonal or one.layout.structure != other.layout.structure or not (one.owned and other.owned):
        return None
    rows = np.concatenate([one.layout.rows, other.layout.rows])
    room = held + more if one.reserved is None else len(one.reserved)
    if held + count > room or room * other.values[0].numel() <= slab():
        return None
    if (rows < 0).any() or len(np.unique(rows)) < len(rows):
        return None
    memory = one.reserved
    if memory is None:
        charge(room * other.values[0].nbytes)
        memory = one.values.new_empty(room, *one.shape)
        memory[:held].copy_(one.values)
    memory[held : held + count].copy_(other.values)
    layout = Layout(one.layout.pieces, rows)
    return Cotangent(layout, memory[: held + count], one.operation, owned=True, reserved=memory)


def free(_: int) -> None:
    """A charge that never refuses."""


def densify(group: Cotangent, dims: set[int] | None, charge: Charge = free, shape: Shape | None = None) -> Cotangent:
    """Give each loss that owns slices along `dims` (None: all) rows of its own: those slices, and zeros elsewhere."""
    layout, shape = group.layout, group.shape if shape is None else shape
    cut = split(layout, shape)
    if cut is None or dims is None:
        shape = [p.size for p in layout.pieces]
        dims = set(range(len(shape)))
        cut = split(layout, shape)
        assert cut is not None
    pieces, rows = cut
    axes = [a for a, p in enumerate(pieces) if p.diagonal]
    gone = [a for a in axes if pieces[a].dim in dims]
    if not gone:
        return group
    order = [1 + axes.index(a) for a in gone] + [1 + axes.index(a) for a in axes if a not in gone]
    spread = rows.transpose([0, *order])
    count = layout.stacked * math.prod(pieces[a].size for a in gone)
    owner, kept = _distinct(spread.reshape(count, *spread.shape[1 + len(gone) :]))
    new = canonical([Piece(p.size, p.diagonal and a not in gone) for a, p in enumerate(pieces)], kept)
    charge(len(kept) * math.prod(group.shape) * group.values.element_size())
    values = _spread(group.values, [p.size for p in pieces], gone, owner, len(kept))
    return Cotangent(new, values.reshape(len(kept), *group.shape))


def _distinct(rows: Rows) -> tuple[Rows, Rows]:
    """For each row its index among the distinct ones (-1 if it owns nothing), and those, in first-seen order."""
    seen: dict[bytes, int] = {}
    owner = np.empty(len(rows), dtype=np.int64)
    kept: list[Rows] = []
    for u, row in enumerate(rows):
        if not (row >= 0).any():
            owner[u] = -1
            continue
        key = row.tobytes()
        if key not in seen:
            seen[key] = len(kept)
            kept.append(row)
        owner[u] = seen[key]
    return owner, np.array(kept, dtype=np.int64).reshape(len(kept), *rows.shape[1:])


def _spread(values: Tensor, sizes: list[int], gone: list[int], owner: Rows, count: int) -> Tensor:
    """`out[owner[k, g], .., g, ..] += values[k, .., g, ..]`, g running over the pieces `gone`."""
    stacked = values.shape[0]
    source = values.reshape(stacked, *sizes)
    out = torch.zeros(count, *sizes, dtype=values.dtype, device=values.device)
    lengths = [sizes[a] for a in gone]
    front = [1 + a for a in gone]
    rest = [1 + a for a in range(len(sizes)) if a not in gone]
    source = source.permute(0, *front, *rest)
    if len(owner) == count and (owner == np.arange(count)).all():
        grid = out.view(stacked, *lengths, *sizes)
        offset = 1 + len(gone)
        strides = [grid.stride(1 + j) + grid.stride(offset + a) for j, a in enumerate(gone)]
        tail = [grid.stride(offset - 1 + a) for a in rest]
        grid.as_strided(source.shape, (grid.stride(0), *strides, *tail)).copy_(source)
        return out
    place = np.stack(np.unravel_index(np.arange(len(owner)), (stacked, *lengths)), axis=1)
    live = owner >= 0
    index = placed(np.concatenate([owner[live, None], place[live, 1:]], axis=1), values.device)
    flat = source.reshape(len(owner), *source.shape[1 + len(gone) :])
    flat = flat.index_select(0, placed(np.flatnonzero(live), values.device))
    out.permute(0, *front, *rest).index_put_(tuple(index.unbind(1)), flat, accumulate=True)
    return out


def reduce_to(group: Cotangent, shape: Shape, charge: Charge = free) -> Cotangent:
    """Sum a cotangent of a broadcast result down to the operand's `shape`; diagonal pieces summed over become rows."""
    full = tuple(group.shape)
    if full == tuple(shape):
        return group
    if split(group.layout, full) is None:
        group = densify(group, None, charge)
    plan = _reduction(group.layout, full, tuple(shape))
    values = group.values.reshape(plan.sizes).permute(plan.order)
    if plan.over:
        values = values.sum(dim=plan.over)
    values = values.reshape(plan.stacked, *shape)
    if plan.live is not None:
        values = values.index_select(0, placed(plan.live, values.device))
    return Cotangent(plan.layout, values)


class _Reduction(NamedTuple):
    """How to sum down: split into `sizes`, reorder, sum `over` the last ones; of `stacked` rows keep those `live`."""

    sizes: tuple[int, ...]
    order: tuple[int, ...]
    over: tuple[int, ...]
    stacked: int
    live: Rows | None
    layout: Layout


@remembered
def _reduction(layout: Layout, full: tuple[int, ...], shape: tuple[int, ...]) -> _Reduction:
    cut = split(layout, full)
    assert cut is not None, "the caller densifies what cannot be split"
    pieces, rows = cut
    lead = len(full) - len(shape)
    summed = {d for d, n in enumerate(full) if d < lead or (shape[d - lead] == 1 and n != 1)}
    over = [1 + a for a, p in enumerate(pieces) if p.dim in summed and not p.diagonal]
    gone = [1 + a for a, p in enumerate(pieces) if p.dim in summed and p.diagonal]
    rest = [1 + a for a, p in enumerate(pieces) if p.dim not in summed]
    axes = [1 + a for a, p in enumerate(pieces) if p.diagonal]
    moved = rows.transpose([0, *(1 + axes.index(a) for a in gone), *(1 + axes.index(a) for a in axes if a not in gone)])
    count = math.prod(moved.shape[: 1 + len(gone)])
    moved = moved.reshape(count, *moved.shape[1 + len(gone) :])
    owned = (moved >= 0).reshape(count, -1).any(axis=1)
    live = None if owned.all() or not gone else np.flatnonzero(owned)
    moved = moved if live is None else moved[live]
    order = (0, *gone, *rest, *over)
    last = tuple(range(1 + len(gone) + len(rest), len(order)))
    small = canonical([Piece(pieces[a - 1].size, pieces[a - 1].diagonal) for a in rest], moved)
    return _Reduction((len(rows), *(p.size for p in pieces)), order, last, count, live, small)


def unite(groups: Sequence[Cotangent], charge: Charge = free) -> list[Cotangent]:
    """As few groups as possible: equal owners are added, equal structures stacked, one is spread where that is free."""
    if len(groups) < 2:
        return list(groups)
    buckets: dict[object, list[Cotangent]] = {}
    for group in groups:
        buckets.setdefault(group.layout.structure, []).append(group)
    united = [_stack(bucket, charge) for bucket in buckets.values()]
    return _absorb(united, charge) if len(united) > 1 else united


def _overlaid(groups: list[Cotangent]) -> list[Cotangent]:
    """Add up groups that own different slices, so that a batch that was cut and joined is one row again."""
    out: list[Cotangent] = []
    for group in groups:
        for n, other in enumerate(out):
            both = overlay(other.layout, group.layout)
            if both is not None:
                out[n] = Cotangent(both, other.values + group.values)
                break
        else:
            out.append(group)
    return out


def _stack(groups: list[Cotangent], charge: Charge) -> Cotangent:
    if any((g.layout.rows < 0).any() for g in groups):
        groups = _overlaid(groups)
    if len(groups) == 1:
        return groups[0]
    rows = np.concatenate([g.layout.rows for g in groups])
    owner, kept = _distinct(rows)
    layout = Layout(groups[0].layout.pieces, kept)
    shape = groups[0].shape
    first = groups[0].values
    if len(kept) > 1:
        charge(len(kept) * math.prod(shape) * first.element_size())
    if len(kept) == len(owner) and (owner == np.arange(len(owner))).all():
        return Cotangent(layout, torch.cat([g.values for g in groups]), owned=True)
    if len(kept) == 1 and (owner == 0).all():
        total = first.sum(0, keepdim=True) if len(first) > 1 else first
        return Cotangent(layout, sum((g.values.sum(0, keepdim=True) for g in groups[1:]), start=total))
    out = torch.zeros(len(kept), *shape, dtype=first.dtype, device=first.device)
    ends = list(itertools.accumulate(g.layout.stacked for g in groups))
    for group, end in zip(groups, ends, strict=True):
        mine = owner[end - group.layout.stacked : end]
        live = np.flatnonzero(mine >= 0)
        index = placed(mine[live], out.device)
        values = group.values
        if len(live) < len(mine):
            values = values.index_select(0, placed(live, out.device))
        out.index_add_(0, index, values.to(out.dtype))
    return Cotangent(layout, out)


def _absorb(groups: list[Cotangent], charge: Charge) -> list[Cotangent]:
    """Add a group with more batch axes into one with fewer when that needs no new rows; or keep both."""
    groups = sorted(groups, key=lambda g: g.values.numel())
    kept: list[Cotangent] = []
    for n, group in enumerate(groups):
        for host in range(n + 1, len(groups)):
            if _fits(group.layout, groups[host].layout):
                other = groups[host]
                sizes = [p.size for p in other.layout.pieces]
                mixed = {d for d, p in enumerate(other.layout.pieces) if not p.diagonal}
                groups[host] = _stack([other, densify(group, mixed, charge, sizes)], charge)
                break
        else:
            kept.append(group)
    return kept


def _fits(layout: Layout, host: Layout) -> bool:
    """Whether spreading `layout` to the structure of `host` needs no rows that `host` does not have."""
    cut = split(layout, [p.size for p in host.pieces])
    if cut is None:
        return False
    diagonal = {d for d, p in enumerate(host.pieces) if p.diagonal}
    pieces, rows = cut
    inside = [p for p in pieces if p.dim in diagonal]
    if not all(p.diagonal for p in inside) or [p.size for p in inside] != [
        host.pieces[d].size for d in sorted(diagonal)
    ]:
        return False
    gone = [1 + a for a, p in enumerate(p for p in pieces if p.diagonal) if p.dim not in diagonal]
    stay = [a for a in range(1, rows.ndim) if a not in gone]
    spread = rows.transpose([0, *gone, *stay])
    spread = spread.reshape(-1, *spread.shape[1 + len(gone) :])
    _, kept = _distinct(spread)
    have = {row.tobytes() for row in host.rows}
    return all(row.tobytes() in have for row in kept)


def materialised(rows: Rows, values: Tensor) -> Cotangent:
    """A group without batch axes, rows of one loss added up, rows of none dropped."""
    owner, kept = _distinct(rows.reshape(-1))
    layout = dense(kept, math.prod(values.shape[1:]))
    if len(kept) == len(owner) and (owner == np.arange(len(owner))).all():
        return Cotangent(layout, values)
    out = torch.zeros(len(kept), *values.shape[1:], dtype=values.dtype, device=values.device)
    live = np.flatnonzero(owner >= 0)
    index = placed(owner[live], out.device)
    out.index_add_(0, index, values.index_select(0, placed(live, out.device)))
    return Cotangent(layout, out)
