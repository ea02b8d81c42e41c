"""Cotangents that meet at a node: added, appended, united to as few as their layouts allow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from gramjd.engine.cotangent import Charge, Cotangent, add_rows, densify, share_scope, unlimited
from gramjd.engine.gaps import distinct, filled, overlay
from gramjd.engine.layout import Layout, Owners, interned, split
from gramjd.kernels.cost import chunk


def added(one: Cotangent, other: Cotangent, layout: Layout | None = None) -> Cotangent:
    """The sum of two cotangents, in the memory of one that is donated if there is one.

    `layout`: that of the sum; None where both have it already.
    """
    layout = one.layout if layout is None else layout
    for into, more in ((one, other), (other, one)):
        if into.planned or (into.donated and into.values.is_contiguous()):
            if not into.planned:
                into.values.add_(more.values)
            into.layout, into.donated = layout, True
            return into
    return Cotangent.of(layout, one.values + other.values, operation=one.operation, donated=True)


def appended(one: Cotangent, other: Cotangent, more: int, charge: Charge) -> Cotangent | None:
    """`one` with the rows of `other` after its own, in memory with room for `more` rows, taken the first time.

    Appending in place avoids a second copy of the rows at the peak. Returns None for small rows, where it saves
    nothing, and where rows cannot simply stand one after the other.
    """
    held, count = one.layout.stacked, other.layout.stacked
    if one.layout.diagonal or one.layout.structure != other.layout.structure or not (one.donated and other.donated):
        return None
    owners = np.concatenate([one.layout.owners, other.layout.owners])
    room = one.capacity or held + more
    if held + count > room or room * math.prod(other.shape) <= chunk():
        return None
    if (owners < 0).any() or len(np.unique(owners)) < len(owners):
        return None
    if not one.capacity:
        charge(room * math.prod(other.shape) * other.dtype.itemsize)
    out = Cotangent(
        interned(Layout(one.layout.pieces, owners)), one.shape, one.dtype, operation=one.operation, donated=True
    )
    out.capacity = room
    if not one.planned:
        memory = one._memory
        if memory is None:
            memory = one.values.new_empty(room, *one.shape)
            memory[:held].copy_(one.values)
        memory[held : held + count].copy_(other.values)
        out._memory, out._values = memory, memory[: held + count]
    return out


def unite(cotangents: Sequence[Cotangent], charge: Charge = unlimited) -> list[Cotangent]:
    """As few as possible: equal owners are added, equal structures stacked, one is spread where that is free."""
    return [_filled(c) for c in _united(cotangents, charge)]


def _united(cotangents: Sequence[Cotangent], charge: Charge) -> list[Cotangent]:
    if len(cotangents) < 2:
        return list(cotangents)
    share_scope(cotangents)
    if any(c.layout.gaps for c in cotangents):
        cotangents = _overlaid(cotangents)
    buckets: dict[object, list[Cotangent]] = {}
    for cotangent in cotangents:
        buckets.setdefault(cotangent.layout.structure, []).append(cotangent)
    united = [_stack(bucket, charge) for bucket in buckets.values()]
    return _absorb(united, charge) if len(united) > 1 else united


def _filled(c: Cotangent) -> Cotangent:
    """With gaps given away, once all that meets is there."""
    layout = filled(c.layout, c.shape)
    return c if layout is c.layout else c.derived(layout, c.shape, lambda: c.values, donated=c.donated)


def _overlaid(cotangents: Sequence[Cotangent]) -> list[Cotangent]:
    """Add up those that own different slices, so that a batch that was cut and joined is one row again."""
    out: list[Cotangent] = []
    for mine in cotangents:
        for n, other in enumerate(out):
            both = overlay(other.layout, mine.layout)
            if both is not None:
                out[n] = _sum(both, other, mine)
                break
        else:
            out.append(mine)
    return out


def _sum(layout: Layout, one: Cotangent, other: Cotangent) -> Cotangent:
    return one.derived(layout, one.shape, lambda: one.values + other.values)


def _stack(given: list[Cotangent], charge: Charge) -> Cotangent:
    first = given[0]
    if len(given) == 1:
        return first
    owner, kept = distinct(np.concatenate([c.layout.owners for c in given]))
    layout = interned(Layout(first.layout.pieces, kept))
    if len(kept) > 1:
        charge(len(kept) * math.prod(first.shape) * first.dtype.itemsize)
    if len(kept) == len(owner) and (owner == np.arange(len(owner))).all():
        return first.derived(layout, first.shape, lambda: torch.cat([c.values for c in given]), donated=True)
    if len(kept) == 1 and (owner == 0).all():
        return first.derived(layout, first.shape, lambda: _one_row_of(given))
    return first.derived(layout, first.shape, lambda: _by_owner(given, owner, len(kept)), donated=True)


def _one_row_of(given: Sequence[Cotangent]) -> Tensor:
    rows = [c.values if len(c.values) == 1 else c.values.sum(0, keepdim=True) for c in given]
    return reduce(torch.add, rows)


def _by_owner(given: Sequence[Cotangent], owner: Owners, count: int) -> Tensor:
    """Rows of each distinct owner added up; those of none dropped."""
    first = given[0].values
    out = torch.zeros(count, *first.shape[1:], dtype=first.dtype, device=first.device)
    ends = list(itertools.accumulate(c.layout.stacked for c in given))
    for cotangent, end in zip(given, ends, strict=True):
        add_rows(out, owner[end - cotangent.layout.stacked : end], cotangent.values)
    return out


def _absorb(given: list[Cotangent], charge: Charge) -> list[Cotangent]:
    """Add a cotangent with more batch axes into one with fewer when that needs no new rows; or keep both."""
    given = sorted(given, key=lambda c: c.numel)
    kept: list[Cotangent] = []
    for n, mine in enumerate(given):
        for host in range(n + 1, len(given)):
            if _fits(mine.layout, given[host].layout):
                other = given[host]
                sizes = [p.size for p in other.layout.pieces]
                mixed = {d for d, p in enumerate(other.layout.pieces) if not p.diagonal}
                given[host] = _stack([other, densify(mine, mixed, charge, sizes)], charge)
                break
        else:
            kept.append(mine)
    return kept


def _fits(layout: Layout, host: Layout) -> bool:
    """Returns True if spreading `layout` to the structure of `host` needs no rows that `host` does not have."""
    cut = split(layout, [p.size for p in host.pieces])
    if cut is None:
        return False
    diagonal = {d for d, p in enumerate(host.pieces) if p.diagonal}
    pieces, owners = cut
    inside = [p for p in pieces if p.dim in diagonal]
    if not all(p.diagonal for p in inside) or [p.size for p in inside] != [
        host.pieces[d].size for d in sorted(diagonal)
    ]:
        return False
    gone = [1 + a for a, p in enumerate(p for p in pieces if p.diagonal) if p.dim not in diagonal]
    stay = [a for a in range(1, owners.ndim) if a not in gone]
    spread = owners.transpose([0, *gone, *stay])
    spread = spread.reshape(-1, *spread.shape[1 + len(gone) :])
    _, kept = distinct(spread)
    have = {row.tobytes() for row in host.owners}
    return all(row.tobytes() in have for row in kept)
