"""Embeddings and indexing: the one family where the data decide which loss owns a slice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.factor import Gathered
from gramjd.engine.node import NodeView
from gramjd.engine.rules.matmul import batched
from gramjd.engine.rules.views import gathered
from gramjd.engine.rules.vocabulary import DimMap, Rule, carried, named, of_real, opaque

# An input slice that more output slices read than this gets dense rows instead of one stacked row a reader.
MOST_READERS = 8
CUTS = "indexes into a batch axis in a way that mixes its slices"


def embedding(visit: NodeView) -> None:
    """out [*ids, d] = weight[ids]."""
    ids: Tensor = visit.saved("indices")
    d = visit.output().shape[-1]
    scale = _token_scale(visit, ids)
    for group in visit.groups():
        flat = Cotangent(group.layout, group.values.reshape(-1, 1, ids.numel(), d))
        flat = visit.keep_only(flat, {1}, CUTS)
        own_ids, values, rows = batched(flat, ids.reshape(1, -1, 1))
        if scale is not None and not visit.dry:
            values = values * batched(flat, scale.reshape(1, -1, 1))[0]
        factor = Gathered(rows, visit.input(0).shape, visit.name, own_ids[0, :, :, 0], values[:, 0])
        _send_table(visit, factor)


def _send_table(visit: NodeView, factor: Gathered) -> None:
    if visit.parametric(0):
        visit.send_factor(0, factor)
    else:
        visit.send_rows(0, factor)


def _token_scale(visit: NodeView, ids: Tensor) -> Tensor | None:
    """Zero for the padding index, one over the count where the module scales by frequency."""
    padding = visit.integer("padding_idx")
    scale = None
    if padding >= 0:
        scale = ids != padding
    if visit.saved("scale_grad_by_freq"):
        _, inverse, counts = torch.unique(ids, return_inverse=True, return_counts=True)
        frequency = 1 / counts.to(torch.float64)[inverse].to(visit.output().dtype)
        scale = frequency if scale is None else scale * frequency
    return scale


def embedding_bag(visit: NodeView) -> None:
    """Bags of ids, summed or averaged: every id is a sample of its own, with its bag's owner."""
    if visit.wants(1) or visit.integer("mode") == 2 or visit.saved("scale_grad_by_freq"):
        opaque(visit)
        return
    ids: Tensor = visit.saved("indices")
    offsets: Tensor = visit.saved("offsets")
    bags = visit.output().shape[0]
    bag = torch.searchsorted(offsets[:bags].contiguous(), torch.arange(len(ids), device=ids.device), right=True) - 1
    live = torch.ones_like(ids, dtype=torch.bool)
    if visit.integer("padding_idx") >= 0:
        live = ids != visit.integer("padding_idx")
    ids, bag = ids[live], bag[live]
    weight = torch.ones(len(ids), device=ids.device, dtype=visit.output().dtype)
    if visit.integer("mode") == 1:
        weight = weight / torch.bincount(bag, minlength=bags)[bag]
    elif visit.saved("per_sample_weights") is not None and visit.saved("per_sample_weights").numel():
        weight = visit.saved("per_sample_weights")[live]
    for group in visit.groups():
        group = visit.keep_only(group, {0}, CUTS)
        _send_bags(visit, group, ids, bag, weight)


def _send_bags(visit: NodeView, group: Cotangent, ids: Tensor, bag: Tensor, weight: Tensor) -> None:
    index = bag.cpu().numpy()
    K = group.layout.stacked
    shape = visit.input(0).shape
    if visit.dry:
        values = torch.empty(K, len(index), shape[1], device="meta", dtype=group.values.dtype)
    else:
        values = group.values[:, bag] * weight[:, None]
    if group.layout.diagonal:
        parts = layouts.along(group.layout, group.shape, 0)
        assert parts is not None, "kept to whole dimensions above"
        rows = parts[2][:, index].reshape(-1)
        factor = Gathered(rows, shape, visit.name, ids[:, None], values[:, :, None])
    else:
        factor = Gathered(group.layout.rows, shape, visit.name, ids[None], values[:, None])
    _send_table(visit, factor)


def gather(visit: NodeView) -> None:
    """Gather, scatter: all dimensions but one stay apart, where index and input have the same size."""
    dim = visit.dim(of=max(1, len(visit.output().shape)))
    shape = visit.output().shape

    def maps(v: NodeView) -> list[DimMap | None]:
        out: list[DimMap | None] = []
        for edge in range(len(v.edges)):
            target = v.input(edge).shape if v.wants(edge) else ()
            out.append(
                {d: d for d in range(len(shape)) if d != dim and len(target) == len(shape) and target[d] == shape[d]}
            )
        return out

    carried(maps)(visit)


def _readers(index: layouts.Rows) -> layouts.Rows:
    """For each output position, how many earlier ones read the same input position."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    run = np.arange(len(index)) - np.repeat(starts, np.diff(np.append(starts, len(index))))
    out = np.empty_like(run)
    out[order] = run
    return out


def taken_at(
    visit: NodeView, edge: int, group: Cotangent, shape: tuple[int, int, int], index: Tensor, size: int
) -> None:
    """The cotangent [A, P, C] of `input [A, size, C]` read at `index [P]` along the middle."""
    A, P, C = shape
    group = Cotangent(group.layout, group.values.reshape(-1, *shape))
    where = layouts.diagonal_dims(group.layout, shape)
    if where is None:
        group = visit.densified(group, None, CUTS)
        where = frozenset()
    positions = index.cpu().numpy().astype(np.int64)
    slots = _readers(positions) if 1 in where and P else np.zeros(P, dtype=np.int64)
    if slots.size and slots.max() >= MOST_READERS:
        group, slots = visit.densified(group, {1}, CUTS), np.zeros(P, dtype=np.int64)
        where = layouts.diagonal_dims(group.layout, shape) or frozenset()
    target = visit.input(edge).shape
    for slot in range(int(slots.max()) + 1 if slots.size else 0):
        mine = np.flatnonzero(slots == slot)
        layout: layouts.Layout | None
        if 1 in where:
            part = layouts.gather(group.layout, shape, 1, mine)
            layout = None if part is None else layouts.scatter(part, (A, len(mine), C), 1, positions[mine], size)
        else:
            layout = layouts.carry(group.layout, shape, (A, size, C), {0: 0, 2: 2})
        if layout is not None:
            visit.send(
                edge, layout, None if visit.dry else _added(group.values, mine, index, size).reshape(-1, *target)
            )


def _added(values: Tensor, mine: layouts.Rows, index: Tensor, size: int) -> Tensor:
    K, A, P, C = values.shape
    out = torch.zeros(K, A, size, C, dtype=values.dtype, device=values.device)
    if len(mine) < P:
        some = layouts.placed(mine, values.device)
        values, index = values.index_select(2, some), index.to(values.device).index_select(0, some)
    return out.index_add_(2, index.to(values.device), values)


def index_select(visit: NodeView) -> None:
    """out = input.index_select(dim, index)."""
    shape, target = visit.output().shape, visit.input(0).shape
    dim = visit.dim(of=max(1, len(target)))
    index = visit.saved("index").reshape(-1)
    if not target:
        opaque(visit)
        return
    outer = (math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :]))
    for group in visit.groups():
        taken_at(visit, 0, group, outer, index, target[dim])


def index_add(visit: NodeView) -> None:
    """out = input, plus alpha * source at `index` along a dimension."""
    shape = visit.output().shape
    if not shape:
        opaque(visit)
        return
    dim = visit.dim()
    index: Tensor = visit.saved("index").reshape(-1)
    alpha = float(visit.saved("alpha"))
    for group in visit.groups():
        visit.send(0, group.layout, group.values)
        if visit.wants(1):
            group = visit.densified(group, None, CUTS) if layouts.split(group.layout, shape) is None else group
            layout = gathered(group, shape, dim, index.cpu().numpy())
            if layout is not None:
                target = visit.input(1).shape
                part = None if visit.dry else group.values.index_select(1 + dim, index) * alpha
                visit.send(1, layout, None if part is None else part.reshape(-1, *target))


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


def index(visit: NodeView) -> None:
    """out = input[.., i, j, ..] with index tensors on neighbouring dimensions; other forms go dense."""
    target = visit.input(0).shape
    found = _linear_index(visit.saved("indices"), target)
    if found is None:
        opaque(visit)
        return
    start, count, linear = found
    outer = (math.prod(target[:start]), linear.numel(), math.prod(target[start + count :]))
    for group in visit.groups():
        taken_at(visit, 0, group, outer, linear.reshape(-1), math.prod(target[start : start + count]))


def index_put(visit: NodeView) -> None:
    """out = input with `values` put (or added) at an index."""
    shape = visit.output().shape
    found = _linear_index(visit.saved("indices"), shape)
    if found is None:
        opaque(visit)
        return
    start, count, linear = found
    flat = (math.prod(shape[:start]), math.prod(shape[start : start + count]), math.prod(shape[start + count :]))
    given = (*shape[:start], *linear.shape, *shape[start + count :])
    for group in visit.groups():
        whole = Cotangent(group.layout, group.values.reshape(-1, *flat))
        whole = visit.densified(whole, None, CUTS) if layouts.split(whole.layout, flat) is None else whole
        if visit.wants(0):
            kept = whole.values
            if not visit.saved("accumulate") and not visit.dry:
                kept = kept.index_fill(2, linear.reshape(-1), 0)
            visit.send(0, whole.layout, None if visit.dry else kept.reshape(-1, *shape))
        if visit.wants(1):
            layout = gathered(whole, flat, 1, linear.reshape(-1).cpu().numpy())
            if layout is not None:
                part = None if visit.dry else whole.values.index_select(2, linear.reshape(-1))
                visit.send(1, layout, None if part is None else part.reshape(-1, *given), given)


def masked_select(visit: NodeView) -> None:
    """out [P] = input[mask], both broadcast."""
    target, mask = visit.input(0).shape, visit.saved("mask")
    places = torch.arange(math.prod(target), device=mask.device).view(target)
    linear = places.masked_select(mask)
    for group in visit.groups():
        taken_at(visit, 0, group, (1, linear.numel(), 1), linear, math.prod(target))


RULES: dict[str, Rule] = {
    **named("Embedding", embedding),
    **named("EmbeddingBag", embedding_bag),
    **named("Gather Scatter ScatterAdd Topk", gather),
    **named("IndexSelect", index_select),
    **named("IndexAdd", of_real(index_add)),
    **named("Index", index),
    **named("IndexPut", index_put),
    **named("MaskedSelect", masked_select),
}
