"""One row per loss: factors of which a loss owns many rows, as factors in which those rows are positions.

After an index, a mask or a routing every token is a slice of its own, with its loss as the owner. The row of a loss is
the sum over its tokens, as it is over positions: `J_i = sum over tokens n of loss i of c_n x_n^T`. So tokens are sorted
by owner, and losses with about as many tokens are one factor, in which they have T positions; shorter ones are padded
with zeros. Work and memory are linear in the tokens, and the rows are at most as many as the losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gramjd.engine.cotangent import add_rows, index_tensor
from gramjd.engine.factor import Convolution, Factor, Gathered, Outer
from gramjd.engine.isometry import View
from gramjd.engine.layout import Mask, Owners

# Padding is free up to this part of a factor's positions, and up to this many multiply-adds: fewer cost less than the
# calls for one more factor.
PADDED, LEAST = 0.25, 1 << 21


class Pairs(NamedTuple):
    """Which slices of a batch axis each row of a factor sums over.

    `places [n, L]`: the slices, from number 0 on, -1 where a row has fewer. `owners [K n]` of the rows. `apart`: K
    stacked rows are slices, too, numbered `k b + n`, and the rows are not stacked.
    """

    places: Owners
    owners: Owners
    apart: bool


def by_loss(factors: Sequence[Factor]) -> list[Factor]:
    """The same rows with those of one loss added up, as few factors as the numbers of their slices allow.

    Args:
        factors: of one region of a parameter. Kinds that are not known here stay as they are.
    """
    return [one for factor in _merged(factors) for one in _grouped(factor)]


def repeated(owners: Owners) -> bool:
    """Returns True if a row belongs to no loss, or a loss owns several.

    >>> repeated(np.array([2, 0, 1])), repeated(np.array([2, 0, 2])), repeated(np.array([0, -1]))
    (False, True, True)
    """
    if owners.ndim > 1 or len(owners) < 2:
        return False
    counts = np.bincount(owners + 1)
    return bool(counts[0]) or int(counts.max()) > 1


def described(factor: Factor) -> str:
    """The rows in words, as `explain` prints them."""
    if type(factor) not in _KINDS or not repeated(factor.owners):
        return factor.describe()
    live = factor.owners[factor.owners >= 0]
    return f"{len(np.unique(live))} losses, {len(live)} slices"


def rows_by_loss(factor: Factor, owners: Owners, dtype: torch.dtype | None = None) -> Tensor:
    """[R, *shape at the current place]: a factor multiplied out, a row for each of the distinct `owners` [R]."""
    parts = by_loss([factor])
    if len(parts) == 1 and parts[0].owners.shape == owners.shape and (parts[0].owners == owners).all():
        return parts[0].materialise(dtype)
    order = np.argsort(owners)
    rows = []
    for part in parts:
        place = order[np.searchsorted(owners, part.owners, sorter=order).clip(max=len(owners) - 1)]
        rows.append((np.where(part.owners >= 0, place, -1), part.materialise(dtype)))
    first = rows[0][1]
    out = torch.zeros(len(owners), *first.shape[1:], dtype=first.dtype, device=first.device)
    for place, values in rows:
        add_rows(out, place, values)
    return out


def _grouped(factor: Factor) -> list[Factor]:
    if type(factor) not in _KINDS or not repeated(factor.owners) or not (factor.owners >= 0).any():
        return [factor]
    kind = _KINDS[type(factor)]
    return [kind.pick(factor, pairs) for pairs in _pairs(factor, kind.work(factor))]


def _pairs(factor: Factor, work: int) -> list[Pairs]:
    """The slices of every row, those with about as many together; `work`: multiply-adds per slice."""
    K, b = factor.samples()
    owners = factor.owners.reshape(K, b)
    kinds, which, live = _kinds(owners)
    apart = K > 1 and repeated(kinds[:, live].reshape(-1))
    if apart:
        kinds, which, live = _kinds(owners.reshape(1, -1))
    order, counts = np.argsort(which, kind="stable"), np.bincount(which, minlength=kinds.shape[1])
    starts = np.cumsum(counts) - counts
    found = []
    for rows in _alike(np.where(live, counts, 0), work):
        step = np.arange(counts[rows].max())
        places = order[(starts[rows, None] + step).clip(max=len(order) - 1)]
        places = np.where(step < counts[rows, None], places, -1)
        found.append(Pairs(places, np.ascontiguousarray(kinds[:, rows]).reshape(-1), apart))
    return found


def _kinds(owners: Owners) -> tuple[Owners, Owners, Mask]:
    """The distinct columns, which of them each column is, and which of them own anything."""
    if len(owners) == 1:
        one, which = np.unique(owners[0], return_inverse=True)
        return one[None], which.reshape(-1), np.asarray(one >= 0)
    kinds, which = np.unique(owners, axis=1, return_inverse=True)
    return kinds, which.reshape(-1), np.asarray((kinds >= 0).any(axis=0))


def _alike(counts: Owners, work: int) -> list[Owners]:
    """Numbers of the rows with slices, in groups of about as many of them: padding costs little in each."""
    order = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
    groups: list[Owners] = []
    start, padding = 0, 0
    for n, row in enumerate(order):
        longest = int(counts[order[start]])
        missing = longest - int(counts[row])
        padding += missing
        if missing > PADDED * longest and padding * work > LEAST:
            groups.append(np.sort(order[start:n]))
            start, padding = n, 0
    groups.append(np.sort(order[start:]))
    return [group for group in groups if len(group)]


class Groups(NamedTuple):
    """Slices by group and loss: `places [g, b, L]` as in `Pairs`, the `owners [b]`, and how many slices there are."""

    places: Owners
    owners: Owners
    slices: int

    def wasteful(self, work: int) -> bool:
        """Returns True if padding is most of the work, and more than a factor per group costs; `work`: per slice."""
        padding = self.places.size - self.slices
        return padding > self.slices and padding * work > len(self.places) * LEAST


def by_group(owners: Owners, group: Owners, g: int) -> Groups:
    """Slices with `owners [K, P]`, of which those at position p are of `group[p]`, in one row per loss for all groups.

    >>> by_group(np.array([[5, 3, 3, -1]]), np.array([0, 0, 1, 1]), 2).places.tolist()
    [[[1], [0]], [[2], [-1]]]
    """
    flat = owners.reshape(-1)
    live = np.flatnonzero(flat >= 0)
    losses, place = np.unique(flat[live], return_inverse=True)
    cell = np.tile(group, len(owners))[live] * len(losses) + place.reshape(-1)
    order, counts = np.argsort(cell, kind="stable"), np.bincount(cell, minlength=g * len(losses))
    step = np.arange(max(1, int(counts.max(initial=0))))
    at = (np.cumsum(counts) - counts)[:, None] + step
    places = np.where(step < counts[:, None], live[order[at.clip(max=len(order) - 1)]], -1)
    return Groups(places.reshape(g, len(losses), len(step)), losses, len(live))


def of_groups(groups: Groups, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """x [g, b, L, i] and c [1, g, b, L, o] for the positions x [P, i] and c [K, P, o]."""
    index = groups.places.reshape(-1, groups.places.shape[2])
    found = _at(x, 0, np.where(index >= 0, index % max(1, len(x)), -1), padded=True)
    rows = _at(c.flatten(0, 1), 0, index, padded=True)
    return found.view(*groups.places.shape, -1), rows.view(1, *groups.places.shape, -1)


# -- the same for each kind -------------------------------------------------------------------------------------------


def _at(t: Tensor, axis: int, index: Owners, padded: bool = False) -> Tensor:
    """[.., n, L, ..]: slices of an axis, those numbered -1 zero if `padded`, else anything finite of the same row."""
    flat = np.where(index >= 0, index, index[:, :1]).clip(0).reshape(-1)
    if len(flat) == t.shape[axis] and (flat == np.arange(len(flat))).all():
        found = t
    else:
        found = t.index_select(axis, index_tensor(flat, t.device))
    found = found.unflatten(axis, index.shape)
    if padded and (index < 0).any():
        gaps = index_tensor(index < 0, t.device)
        found = found.masked_fill(gaps.view(*gaps.shape, *[1] * (found.ndim - axis - 2)), 0)
    return found


def _slices(c: Tensor, axis: int, pairs: Pairs) -> Tensor:
    """Of cotangents with stacked rows first and a batch axis: [K, .., n, L, ..], K = 1 for rows that are slices."""
    if pairs.apart:
        c = c.movedim(0, axis - 1).flatten(axis - 1, axis).unsqueeze(0)
    return _at(c, axis, pairs.places, padded=True)


def _shared(pairs: Pairs, b: int) -> Owners:
    """The slices of what all stacked rows share."""
    return np.where(pairs.places >= 0, pairs.places % b, -1)


def _outer(factor: Outer, pairs: Pairs) -> Factor:
    x = _at(factor.x, 1, _shared(pairs, factor.x.shape[1])).flatten(2, 3)
    return replace(factor, owners=pairs.owners, x=x, c=_slices(factor.c, 2, pairs).flatten(3, 4))


def _gathered(factor: Gathered, pairs: Pairs) -> Factor:
    ids = _at(factor.ids, 0, _shared(pairs, len(factor.ids))).flatten(1, 2)
    return replace(factor, owners=pairs.owners, ids=ids, c=_slices(factor.c, 1, pairs).flatten(2, 3))


def _convolution(factor: Convolution, pairs: Pairs) -> Factor:
    """Slices of one row are one more dimension to sum over, with a kernel of size 1."""
    shape = (*factor.shape[:2], 1, *factor.shape[2:])
    one = {"stride": 1, "padding": 0, "dilation": 1}
    options = factor.options | {name: [value, *factor.options[name]] for name, value in one.items()}
    return replace(
        factor,
        owners=pairs.owners,
        shape=shape,
        x=_at(factor.x, 0, _shared(pairs, len(factor.x))).transpose(1, 2),
        c=_slices(factor.c, 1, pairs).transpose(2, 3),
        options=options,
        chain=(View(None, factor.shape, shape), *factor.chain),
    )


class _Kind(NamedTuple):
    pick: Callable[[Any, Pairs], Factor]
    work: Callable[[Any], int]


_KINDS: dict[type[Factor], _Kind] = {
    Outer: _Kind(_outer, lambda f: f.c.numel() // f.c.shape[2] * f.x.shape[-1]),
    Gathered: _Kind(_gathered, lambda f: f.c.numel() // f.c.shape[1]),
    Convolution: _Kind(_convolution, lambda f: f.c.numel() // f.c.shape[1] * math.prod(f.shape[1:])),
}


# -- several uses -----------------------------------------------------------------------------------------------------


def _merged(factors: Sequence[Factor]) -> list[Factor]:
    """Products (and rows of tables) in which the same losses own rows as one, whose batch axis is all of theirs."""
    if len(factors) < 2 or not repeated(np.concatenate([f.owners.reshape(-1) for f in factors])):
        return list(factors)
    found: dict[object, list[Factor]] = {}
    for n, factor in enumerate(factors):
        found.setdefault(_alikeness(factor) or n, []).append(factor)
    return [_catenated(mine) if len(mine) > 1 else mine[0] for mine in found.values()]


def _alikeness(factor: Factor) -> object:
    """The same for factors that can be one; None for those that stay alone."""
    if type(factor) not in _JOINED or factor.samples()[0] > 1:
        return None
    return type(factor), factor.shape, factor.chain, factor.device, getattr(factor, "flipped", None)


def _catenated(factors: Sequence[Any]) -> Factor:
    return _JOINED[type(factors[0])](factors)


def _one_outer(factors: Sequence[Outer]) -> Factor:
    owners, x, c = zip(*((np.repeat(f.owners, f.x.shape[2]), f.x, f.c) for f in factors), strict=True)
    return replace(
        factors[0],
        owners=np.concatenate(owners),
        x=torch.cat([t.flatten(1, 2).unsqueeze(2) for t in x], 1),
        c=torch.cat([t.flatten(2, 3).unsqueeze(3) for t in c], 2),
    )


def _one_table(factors: Sequence[Gathered]) -> Factor:
    owners = [np.repeat(f.owners, f.ids.shape[1]) for f in factors]
    return replace(
        factors[0],
        owners=np.concatenate(owners),
        ids=torch.cat([f.ids.reshape(-1, 1) for f in factors], 0),
        c=torch.cat([f.c.flatten(1, 2).unsqueeze(2) for f in factors], 1),
    )


_JOINED: dict[type[Factor], Callable[[Any], Factor]] = {Outer: _one_outer, Gathered: _one_table}
