"""Scatters, gathers and segments: elements of a list are put, added or reduced where an index along one dimension says.

Where the batch axis is another dimension it stays as it is. Along that dimension the data decide: an element belongs to
the loss that owns the place it goes to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.layout import Layout, Owners
from gramjd.engine.node import NodeView, Rule, Sends
from gramjd.engine.rules.indexing import taken_at
from gramjd.engine.rules.strided import MOST_LOOKED_UP, Numbers, Strided, owned_at, owned_by_readers
from gramjd.engine.rules.vocabulary import (
    DimMap,
    apart,
    dense_fallback,
    each,
    gathered,
    named,
    stacked,
    unstacked,
    whole,
)
from gramjd.kernels.tracing import to_numpy

MANY = "goes to places of several losses, or to more places than are looked up"


def _maps(node: NodeView, dim: int) -> list[DimMap | None]:
    """All dimensions but one stay apart, where the output and an input have the same size."""
    shape = node.output().shape
    out: list[DimMap | None] = []
    for target in node.inputs:
        other = () if target is None or len(target.shape) != len(shape) else target.shape
        out.append({d: d for d, n in enumerate(other) if d != dim and n == shape[d]})
    return out


def _stays_apart(node: NodeView, dim: int) -> bool:
    """Returns True if no batch axis lies in the indexed dimension, or in one that differs between inputs and output."""
    maps = _maps(node, dim)
    common = {d for d in range(len(node.output().shape)) if all(d in (maps[e] or {}) for e in node.wanted)}
    where = [layouts.diagonal_dims(c.layout, c.shape) for queue in node.arrivals.values() for c in queue]
    return all(found is None or found <= common for found in where)


def _apart(node: NodeView) -> Sends:
    return apart(lambda v: _maps(v, v.dim(of=max(1, len(v.output().shape)))))(node)


def scatter(node: NodeView) -> Sends:
    """out = self with elements of src put, added or reduced at `index` along a dimension."""
    shape = node.output().shape
    dim = node.dim(of=max(1, len(shape)))
    if not shape or _stays_apart(node, dim):
        return _apart(node)
    index: Tensor = node.saved("index")
    return _scattered(node, dim, index)


def _scattered(node: NodeView, dim: int, index: Tensor) -> Sends:
    line = _line(index, dim)
    given = []
    for c in (whole(node, c) for c in node.cotangents()):
        known = line is not None or not node.wants(1) or c.numel + index.numel() * c.layout.stacked <= MOST_LOOKED_UP
        given.append(c if known else node.densified(c, {dim}, MANY))
    results = node.once(lambda: node.call([stacked(given)]))
    for edge in node.wanted:
        for c, values in zip(given, unstacked(given, partial(_entry, results, edge)), strict=True):
            layout = _read(c, dim, index, line) if edge else c.layout
            if layout is not None:
                yield node.send(edge, layout, values)


def _entry(results: Callable[[], Sequence[Tensor | None]], edge: int) -> Tensor | None:
    return results()[edge]


def _line(index: Tensor, dim: int) -> Owners | None:
    """The index along its dimension where it is the same along all others; None where it is not."""
    first = index
    for d in range(index.ndim):
        first = first if d == dim else first.narrow(d, 0, min(1, index.shape[d]))
    expanded = all(
        d == dim or n == 1 or s == 0 for d, (n, s) in enumerate(zip(index.shape, index.stride(), strict=True))
    )
    if not expanded and not bool((index == first).all()):
        return None
    return to_numpy(first.reshape(-1))


def _read(c: Cotangent, dim: int, index: Tensor, line: Owners | None) -> Layout | None:
    """Owners of what is read from a cotangent at `index` along a dimension."""
    same = all(d == dim or n == index.shape[d] for d, n in enumerate(c.shape))
    if line is not None and same:
        return gathered(c.layout, c.shape, dim, line)
    return owned_at(c.layout, _places(index, dim, c.shape), index.shape)


def _places(index: Tensor, dim: int, shape: Sequence[int]) -> Numbers:
    """For each element of the index, the number of the element of a tensor of `shape` that it names."""
    strides = Strided.row_major(shape).strides
    others = tuple(0 if d == dim else s for d, s in enumerate(strides))
    places = Strided(tuple(index.shape), others, 0).addresses()
    return places + to_numpy(index).astype(np.int64) * strides[dim]


def gather(node: NodeView) -> Sends:
    """out = self.gather(dim, index)."""
    shape = node.output().shape
    dim = node.dim(of=max(1, len(shape)))
    return _apart(node) if not shape or _stays_apart(node, dim) else _gathered(node)


@each
def _gathered(node: NodeView, c: Cotangent) -> Sends:
    shape, target = node.output().shape, node.input(0).shape
    dim, index = node.dim(), node.saved("index")
    line = _line(index, dim)
    if line is not None and all(d == dim or n == shape[d] for d, n in enumerate(target)):
        outer = (math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :]))
        yield from taken_at(node, c, outer, torch.from_numpy(line), target[dim])
        return
    layout = None
    if c.numel <= MOST_LOOKED_UP and math.prod(target) * c.layout.stacked <= MOST_LOOKED_UP:
        layout = owned_by_readers(c.layout, _places(index, dim, target), target)
    if layout is None:
        c = node.densified(c, None, MANY)
        layout = layouts.dense(c.layout.owners, math.prod(target))
    yield node.send(0, layout, lambda: node.call([c.values])[0])


def index_reduce(node: NodeView) -> Sends:
    """out = self with slices of source reduced into it at an index along a dimension."""
    shape = node.output().shape
    if not shape:
        return dense_fallback(node)
    dim = node.dim()
    if _stays_apart(node, dim):
        return _apart(node)
    index: Tensor = node.saved("index").reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return _scattered(node, dim, index.expand([-1 if d == dim else n for d, n in enumerate(shape)]))


def segment_reduce(node: NodeView) -> Sends:
    """out [.., segments, ..] of data [.., n, ..] along an axis, in runs of given lengths."""
    axis = node.integer("axis")
    before = set(range(axis))
    where = [layouts.diagonal_dims(c.layout, c.shape) for c in node.cotangents()]
    lengths = None if axis or all(found is not None and found <= before for found in where) else _lengths(node)
    if lengths is None or sum(lengths) != node.input(0).shape[0]:
        return apart(lambda _: [{d: d for d in range(axis)}])(node)
    return _segments(node, np.repeat(np.arange(len(lengths)), lengths))


def _lengths(node: NodeView) -> Owners:
    lengths, offsets = node.saved("lengths"), node.saved("offsets")
    found: Tensor = lengths if offsets is None else offsets.diff()
    return to_numpy(found)


def _segments(node: NodeView, place: Owners) -> Sends:
    given = [whole(node, c) for c in node.cotangents()]
    results = node.once(lambda: node.call([stacked(given)]))
    for c, values in zip(given, unstacked(given, partial(_entry, results, 0)), strict=True):
        layout = gathered(c.layout, c.shape, 0, place)
        if layout is not None:
            yield node.send(0, layout, values)


RULES: dict[str, Rule] = {
    **named("Gather", gather),
    **named("Scatter ScatterAdd ScatterReduce", scatter),
    **named("IndexReduce", index_reduce),
    **named("SegmentReduce", segment_reduce),
}
