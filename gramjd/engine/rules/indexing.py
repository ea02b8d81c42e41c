"""Embeddings and indexing: the one family where the data decide which loss owns a slice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.cotangent import Cotangent, index_tensor
from gramjd.engine.factor import Gathered
from gramjd.engine.layout import Layout, Owners, Shape
from gramjd.engine.node import NodeView, Operand, Rule, Send, SendFactor, Sends
from gramjd.engine.rules.matmul import axis_of, unfolded
from gramjd.engine.rules.vocabulary import dense_fallback, each, gathered, named, of_real
from gramjd.kernels.tracing import to_numpy

# An input slice that more output slices read than this gets dense rows instead of one stacked row per reader.
MOST_READERS = 8
CUTS = "indexes into a batch axis in a way that mixes its slices"


def embedding(node: NodeView) -> Sends:
    """out [*ids, d] = weight[ids]."""
    *lead, d = node.output().shape
    count = math.prod(lead)
    padding, by_frequency = node.integer("padding_idx"), bool(node.saved("scale_grad_by_freq"))
    scaled = padding >= 0 or by_frequency
    scale = node.once(lambda: _token_scale(node, padding, by_frequency).reshape(1, -1, 1))
    for c in node.cotangents():
        yield _embedded(node, node.keep_only(c.viewed(1, count, d), {1}, CUTS), scale if scaled else None)


def _embedded(node: NodeView, c: Cotangent, scale: Callable[[], Tensor] | None) -> Send | SendFactor:
    axis, owners, d = axis_of(c, 1), c.layout.owners.reshape(-1), c.shape[-1]

    def load_ids() -> Tensor:
        ids: Tensor = node.saved("indices")
        return unfolded(ids.reshape(1, -1, 1), 1, axis)[0, :, :, 0].contiguous()

    def load_c() -> Tensor:
        values = unfolded(c.values, 2, axis)
        return (values if scale is None else values * unfolded(scale(), 1, axis))[:, 0]

    ids = Operand((axis.b, axis.T), torch.int64, load_ids, is_ids=True)
    cs = Operand((c.layout.stacked, axis.b, axis.T, d), c.dtype, load_c)
    return table(node, owners, ids, cs)


def table(node: NodeView, owners: Owners, ids: Operand, c: Operand) -> Send | SendFactor:
    """What a table at edge 0 receives, at rows `ids` [b, T]."""
    build = partial(_gathered, owners, node.input(0).shape, node.name)
    return node.send_factor(0, owners, build, ids, c)


def _gathered(owners: Owners, shape: tuple[int, ...], name: str, ids: Tensor, c: Tensor) -> Gathered:
    return Gathered(owners, shape, name, ids, c)


def _token_scale(node: NodeView, padding: int, by_frequency: bool) -> Tensor:
    """Zero for the padding index, one over the count where the module scales by frequency."""
    ids: Tensor = node.saved("indices")
    if not by_frequency:
        return ids != padding
    _, inverse, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    frequency = 1 / counts.to(torch.float64)[inverse].to(node.output().dtype)
    return frequency * (ids != padding) if padding >= 0 else frequency


def readers(layout: Layout, shape: Shape, dim: int, reads: Owners, positions: Owners) -> Owners:
    """For each reader, output position `reads[e]` of input position `positions[e]`: a number for its losses there.

    Readers of one position that have the same owners share a number, so that what they send is added up. -1: the slice
    belongs to nobody.
    """
    parts = layouts.along(layout, shape, dim)
    assert parts is not None, "made whole by the caller"
    owners = np.moveaxis(parts[2], 1 + sum(p.diagonal for p in parts[0]), 0)
    owners = owners.reshape(len(owners), -1)
    owned = (owners >= 0).any(axis=1).reshape(-1)
    live = np.flatnonzero(owned[reads])
    out = np.full(len(reads), -1, dtype=np.int64)
    kinds, who = np.unique(owners, axis=0, return_inverse=True)
    pairs, which = np.unique(positions[live] * len(kinds) + who.reshape(-1)[reads[live]], return_inverse=True)
    at = pairs // max(1, len(kinds))
    first = np.flatnonzero(np.append(True, at[1:] != at[:-1])) if len(at) else at
    rank = np.arange(len(at)) - np.repeat(first, np.diff(np.append(first, len(at))))
    out[live] = rank[which.reshape(-1)]
    return out


def moved(layout: Layout, shape: Shape, dim: int, reads: Owners, positions: Owners, size: int) -> Layout | None:
    """Owners of the input positions that readers with one number (`readers`) read; `size` positions in all."""
    at, first = np.unique(positions, return_index=True)
    part = layouts.gather(layout, shape, dim, reads[first])
    middle = [n if d != dim else len(at) for d, n in enumerate(shape)]
    return None if part is None else layouts.scatter(part, middle, dim, at, size)


def taken_at(node: NodeView, c: Cotangent, shape: tuple[int, int, int], index: Tensor, size: int) -> Sends:
    """The cotangent [A, P, C] of `input [A, size, C]` read at `index [P]` along the middle."""
    A, P, C = shape
    c = c.viewed(*shape)
    where = layouts.diagonal_dims(c.layout, shape)
    if where is None:
        c = node.densified(c, None, CUTS)
        where = frozenset()
    everywhere = np.arange(P)
    if 1 in where and P:
        positions = to_numpy(index).astype(np.int64)
        slots = readers(c.layout, shape, 1, everywhere, positions)
        if slots.max() < MOST_READERS:
            for slot in range(int(slots.max()) + 1):
                mine = np.flatnonzero(slots == slot)
                layout = moved(c.layout, shape, 1, mine, positions[mine], size)
                if layout is not None:
                    yield node.send(0, layout, partial(_added, node, c, mine, index, size))
            return
        c = node.densified(c, {1}, CUTS)
    layout = layouts.carry(c.layout, shape, (A, size, C), {0: 0, 2: 2})
    yield node.send(0, layout, partial(_added, node, c, everywhere, index, size))


def _added(node: NodeView, c: Cotangent, mine: Owners, index: Tensor, size: int) -> Tensor:
    values = c.values
    K, A, P, C = values.shape
    out = torch.zeros(K, A, size, C, dtype=values.dtype, device=values.device)
    if len(mine) < P:
        some = index_tensor(mine, values.device)
        values, index = values.index_select(2, some), index.to(values.device).index_select(0, some)
    return out.index_add_(2, index.to(values.device), values).reshape(K, *node.input(0).shape)


def index_select(node: NodeView) -> Sends:
    """out = input.index_select(dim, index)."""
    shape, target = node.output().shape, node.input(0).shape
    dim = node.dim(of=max(1, len(target)))
    if not target:
        yield from dense_fallback(node)
        return
    index = node.saved("index").reshape(-1)
    outer = (math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :]))
    for c in node.cotangents():
        yield from taken_at(node, c, outer, index, target[dim])


def index_add(node: NodeView) -> Sends:
    """out = input, plus alpha * source at `index` along a dimension."""
    return _index_added(node) if node.output().shape else dense_fallback(node)


@each
def _index_added(node: NodeView, c: Cotangent) -> Sends:
    shape, dim = node.output().shape, node.dim()
    index: Tensor = node.saved("index").reshape(-1)
    alpha = float(node.saved("alpha"))
    yield node.send(0, c.layout, lambda: c.values)
    if node.wants(1):
        part = node.densified(c, None, CUTS) if layouts.split(c.layout, shape) is None else c
        layout = gathered(part.layout, shape, dim, to_numpy(index))
        target = node.input(1).shape
        if layout is not None:
            yield node.send(1, layout, lambda: (part.values.index_select(1 + dim, index) * alpha).reshape(-1, *target))


def _linear_index(indices: Sequence[Tensor | None], shape: Sequence[int]) -> tuple[int, int, Tensor] | None:
    """First indexed dimension, number of them, and the row-major index into them; None if they are not neighbours."""
    expanded: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            expanded += list(index.nonzero(as_tuple=True))
        else:
            expanded.append(index)
    used = [d for d, index in enumerate(expanded) if index is not None]
    if not used or used[-1] - used[0] + 1 != len(used):
        return None
    given = torch.broadcast_tensors(*(index for index in expanded if index is not None))
    linear = torch.zeros_like(given[0], dtype=torch.int64)
    for d, index in zip(used, given, strict=True):
        linear = linear * shape[d] + index.to(torch.int64) % shape[d]
    return used[0], len(used), linear


def index(node: NodeView) -> Sends:
    """out = input[.., i, j, ..] with index tensors on neighbouring dimensions; other forms go dense."""
    target = node.input(0).shape
    found = _linear_index(node.saved("indices"), target)
    if found is None:
        yield from dense_fallback(node)
        return
    start, count, linear = found
    outer = (math.prod(target[:start]), linear.numel(), math.prod(target[start + count :]))
    for c in node.cotangents():
        yield from taken_at(node, c, outer, linear.reshape(-1), math.prod(target[start : start + count]))


def index_put(node: NodeView) -> Sends:
    """out = input with `values` put (or added) at an index."""
    shape = node.output().shape
    found = _linear_index(node.saved("indices"), shape)
    if found is None:
        yield from dense_fallback(node)
        return
    for c in node.cotangents():
        yield from _put(node, c, *found)


def _put(node: NodeView, c: Cotangent, start: int, count: int, linear: Tensor) -> Sends:
    shape, at = node.output().shape, linear.reshape(-1)
    flat = (math.prod(shape[:start]), math.prod(shape[start : start + count]), math.prod(shape[start + count :]))
    given = (*shape[:start], *linear.shape, *shape[start + count :])
    c = c.viewed(*flat)
    c = node.densified(c, None, CUTS) if layouts.split(c.layout, flat) is None else c
    added = bool(node.saved("accumulate"))
    yield node.send(0, c.layout, lambda: (c.values if added else c.values.index_fill(2, at, 0)).reshape(-1, *shape))
    if node.wants(1):
        layout = gathered(c.layout, flat, 1, to_numpy(at))
        if layout is not None:
            yield node.send(1, layout, lambda: c.values.index_select(2, at).reshape(-1, *given), given)


def masked_select(node: NodeView) -> Sends:
    """out [P] = input[mask], both broadcast."""
    target, mask = node.input(0).shape, node.saved("mask")
    places = torch.arange(math.prod(target), device=mask.device).view(target)
    linear = places.masked_select(mask)
    for c in node.cotangents():
        yield from taken_at(node, c, (1, linear.numel(), 1), linear, math.prod(target))


RULES: dict[str, Rule] = {
    **named("Embedding", embedding),
    **named("IndexSelect", index_select),
    **named("IndexAdd", of_real(index_add)),
    **named("Index", index),
    **named("IndexPut IndexPutImpl", index_put),
    **named("MaskedSelect", masked_select),
}
