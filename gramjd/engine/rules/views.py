"""Views, permutations, slices, joins and splits: data moves, nothing is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.autograd import pull
from gramjd.engine.cotangent import Cotangent, reduce_to
from gramjd.engine.factor import Step
from gramjd.engine.node import NodeView
from gramjd.engine.rules.copies import selection
from gramjd.engine.rules.vocabulary import CUTS, Rule, all_but, carried, each, named, permuted, through, whole


def _transposed(visit: NodeView) -> list[int]:
    order = list(range(len(visit.output().shape)))
    a, b = visit.dim("dim0"), visit.dim("dim1")
    if order:
        order[a], order[b] = order[b], order[a]
    return order


def _reversed(visit: NodeView) -> list[int]:
    return list(range(len(visit.output().shape)))[::-1]


def _permutation(visit: NodeView) -> list[int]:
    count = len(visit.output().shape)
    return [d % count for d in visit.integers("dims")]


@each
def expand(visit: NodeView, group: Cotangent) -> None:
    """The cotangent is summed over the expanded dimensions, where slices of a batch axis become rows."""
    visit.send(0, group.layout, group.values, visit.output().shape)


def _positions(visit: NodeView) -> tuple[int, layouts.Rows]:
    """Dimension and input positions that a slice or select takes."""
    sizes = visit.integers("self_sym_sizes")
    dim = visit.dim(of=len(sizes))
    if "Select" in visit.name:
        return dim, np.array([visit.integer("index") % sizes[dim]])
    start, end = (None if visit.saved(name) is None else visit.integer(name) for name in ("start", "end"))
    return dim, np.arange(sizes[dim])[start : end : visit.integer("step")]


@each
def taken(visit: NodeView, group: Cotangent) -> None:
    """Slice and select: zeros elsewhere, which belong to no loss."""
    dim, index = _positions(visit)
    target = visit.input(0).shape
    group = whole(visit, group)
    shape = (*target[:dim], len(index), *target[dim + 1 :])
    layout = _scattered(group, shape, dim, index, target)
    if layout is not None:
        visit.send(0, layout, lambda: _placed(group.values.reshape(-1, *shape), dim, index, target), owned=True)


def _scattered(
    group: Cotangent, shape: Sequence[int], dim: int, index: layouts.Rows, target: Sequence[int]
) -> layouts.Layout | None:
    """Owners over `target` of a part of `dim`.

    Without another batch axis the part itself becomes one: the columns of a table of task outputs, or the samples of a
    loop over a batch, are then one stacked row together.
    """
    where = layouts.diagonal_dims(group.layout, shape)
    assert where is not None, "made whole by the caller"
    if dim in where or (not where and len(index) < target[dim]):
        return layouts.scatter(group.layout, shape, dim, index, target[dim])
    return layouts.carry(group.layout, shape, target, {d: d for d in range(len(shape)) if d != dim})


def _placed(values: Tensor, dim: int, index: layouts.Rows, target: Sequence[int]) -> Tensor:
    """Zeros of `target` with `values` at positions `index` of `dim`."""
    out = torch.zeros(len(values), *target, dtype=values.dtype, device=values.device)
    if not len(index):
        return out
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    where = slice(int(index[0]), int(index[-1]) + 1, step)
    out[(slice(None),) * (1 + dim) + (where,)] = values
    return out


def _sizes(visit: NodeView, dim: int) -> list[int]:
    """Lengths of a split's outputs along `dim`."""
    return [meta.shape[dim] for meta in visit.graph.metadata(visit.node)]


def parts(visit: NodeView) -> None:
    """Split, chunk and unbind: cotangents of all outputs with the same owners are joined in one tensor."""
    unbind = "Unbind" in visit.name
    target = visit.input(0).shape
    dim = visit.dim(of=len(target))
    sizes = [1] * target[dim] if unbind else _sizes(visit, dim)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found: dict[object, tuple[layouts.Layout, dict[int, Tensor]]] = {}
    apart: list[tuple[layouts.Layout, int, Tensor]] = []
    for nr, queue in visit.arrivals.items():
        for group in queue:
            group = whole(visit, group)
            shape = (*group.shape[:dim], 1, *group.shape[dim:]) if unbind else tuple(group.shape)
            index = np.arange(starts[nr], starts[nr + 1])
            layout = _scattered(group, shape, dim, index, target)
            if layout is None:
                continue
            values = group.values.reshape(-1, *shape)
            pieces = found.setdefault(layout.key, (layout, {}))[1]
            if nr in pieces:
                apart.append((layout, nr, values))
            else:
                pieces[nr] = values
    joined = [(layout, pieces) for layout, pieces in found.values()] + [(lay, {nr: v}) for lay, nr, v in apart]
    for layout, pieces in _merged(joined):
        visit.send(0, layout, None if visit.dry else _joined(pieces, sizes, dim, target), owned=True)


def _merged(joined: list[tuple[layouts.Layout, dict[int, Tensor]]]) -> list[tuple[layouts.Layout, dict[int, Tensor]]]:
    """Put layouts together that own different slices: x.chunk(2) on the batch axis gives one row again."""
    out: list[tuple[layouts.Layout, dict[int, Tensor]]] = []
    for layout, pieces in joined:
        for n, (other, have) in enumerate(out):
            both = layouts.overlay(other, layout)
            if both is not None and not set(have) & set(pieces):
                out[n] = (both, {**have, **pieces})
                break
        else:
            out.append((layout, pieces))
    return out


def _joined(pieces: dict[int, Tensor], sizes: list[int], dim: int, target: Sequence[int]) -> Tensor:
    first = next(iter(pieces.values()))

    def piece(nr: int) -> Tensor:
        if nr in pieces:
            return pieces[nr]
        shape = [*target[:dim], sizes[nr], *target[dim + 1 :]]
        return torch.zeros(len(first), *shape, dtype=first.dtype, device=first.device)

    return torch.cat([piece(nr) for nr in range(len(sizes))], dim=1 + dim)


def joins(visit: NodeView) -> None:
    """Cat and stack: each operand gets its part of the cotangent, with the owners of that part."""
    shape, dim = visit.output().shape, visit.dim()
    starts = list(range(len(visit.edges))) if "Stack" in visit.name else _starts(visit, dim)
    groups = [whole(visit, g) for g in visit.groups()]
    for edge, start in enumerate(starts):
        if not visit.wants(edge):
            continue
        target = visit.input(edge).shape
        length = 1 if "Stack" in visit.name else target[dim]
        if not math.prod(target):
            continue
        index = np.arange(start, start + length)
        for group in groups:
            layout = gathered(group, shape, dim, index)
            if layout is not None:
                part = None if visit.dry else group.values.narrow(1 + dim, start, length)
                visit.send(edge, layout, None if part is None else part.reshape(-1, *target))


def _starts(visit: NodeView, dim: int) -> list[int]:
    """Where each operand of cat begins. The node knows; it is asked by sending positions as a cotangent."""
    shape = visit.output().shape
    ladder = torch.arange(shape[dim]).view([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)
    found = pull(visit.node, [ladder[None]])
    return [int(part.flatten()[0]) if part is not None and part.numel() else 0 for part in found]


def gathered(group: Cotangent, shape: Sequence[int], dim: int, index: layouts.Rows) -> layouts.Layout | None:
    """Owners of the positions `index` of a dimension; None if no loss owns any."""
    where = layouts.diagonal_dims(group.layout, shape)
    assert where is not None, "made whole by the caller"
    if dim in where:
        return layouts.gather(group.layout, shape, dim, index)
    middle = [n if d != dim else len(index) for d, n in enumerate(shape)]
    return layouts.carry(group.layout, shape, middle, {d: d for d in range(len(shape)) if d != dim})


def moves(positions: Callable[[NodeView], tuple[int, layouts.Rows]]) -> Rule:
    """Output position p of a dimension is input position index[p], each used once (flip, roll)."""

    def rule(visit: NodeView) -> None:
        dim, index = positions(visit)
        target = visit.input(0).shape
        back = layouts.placed(np.argsort(index), torch.device("cpu"))
        for group in visit.groups():
            group = whole(visit, group)
            where = layouts.diagonal_dims(group.layout, group.shape) or frozenset()
            layout = (
                layouts.scatter(group.layout, group.shape, dim, index, target[dim]) if dim in where else group.layout
            )
            if layout is not None:
                visit.send(
                    0, layout, None if visit.dry else group.values.index_select(1 + dim, back.to(group.values.device))
                )

    return rule


def flip(visit: NodeView) -> None:
    """Flip along one dimension; several at once are found by asking the node."""
    dims = [d % len(visit.output().shape) for d in visit.integers("dims")]
    if len(dims) == 1:
        moves(lambda v: (dims[0], np.arange(v.output().shape[dims[0]])[::-1]))(visit)
    else:
        selection(visit)


def roll(visit: NodeView) -> None:
    """Roll along one dimension; other forms are found by asking the node."""
    dims, shifts = visit.integers("dims"), visit.integers("shifts")
    if len(dims) == 1:
        dim = dims[0] % len(visit.output().shape)
        size = visit.output().shape[dim]
        moves(lambda _: (dim, (np.arange(size) - shifts[0]) % size))(visit)
    else:
        selection(visit)


def repeat(visit: NodeView) -> None:
    """Tile: [r0, n0, r1, n1, ..] summed over the r; copies of a batch axis keep their owners apart by rows."""
    target = visit.input(0).shape
    repeats = visit.integers("repeats")
    lead = len(repeats) - len(target)
    wide = [n for r, size in zip(repeats, [1] * lead + list(target), strict=True) for n in (r, size)]
    to = [n for size in [1] * lead + list(target) for n in (1, size)]
    for group in visit.groups():
        group = visit.densified(group, None, CUTS) if layouts.split(group.layout, wide) is None else group
        tiled = Cotangent(group.layout, group.values.reshape(-1, *wide))
        small = reduce_to(tiled, to, visit.ledger.charge)
        visit.send(0, small.layout, small.values.reshape(-1, *target))


def pad(visit: NodeView) -> None:
    """Constant padding: the batch axes of the dimensions that are not padded."""
    shape, target = visit.output().shape, visit.input(0).shape
    carried(lambda _: [{d: d for d in range(len(shape)) if shape[d] == target[d]}])(visit)


def unfold(visit: NodeView) -> None:
    """Windows along one dimension, laid out in a new last one."""
    dim = visit.dim("dimension", of=len(visit.input(0).shape))
    carried(lambda v: [{d: d for d in range(len(v.input(0).shape)) if d != dim}])(visit)


# -- isometries: what a factor may pass through -----------------------------------------------------------------------


MakeStep = Callable[[NodeView, int], Step]
Push = Callable[[Tensor], Tensor]


def _step(read: Callable[[NodeView, int], Push]) -> MakeStep:
    """A step from what `read` finds out about the node: it must not hold the visit, which holds cotangents."""

    def make(visit: NodeView, nr: int) -> Step:
        node, count = visit.node, len(visit.graph.metadata(visit.node))

        def back(values: Tensor) -> Tensor:
            outputs: list[Tensor | None] = [None] * count
            outputs[nr] = values
            (result,) = (r for r in pull(node, outputs) if r is not None)
            return result

        return Step(read(visit, nr), back)

    return make


def _same(visit: NodeView, nr: int) -> Step:
    dtype = visit.input(0).dtype
    return Step(lambda t: t, lambda values: values.to(dtype))


def _view(visit: NodeView, nr: int) -> Step:
    shape, target = visit.output(nr).shape, visit.input(0).shape
    return Step(lambda t: t.view(shape), lambda values: values.reshape(len(values), *target))


def _permutation_by(order: Callable[[NodeView], Sequence[int]]) -> MakeStep:
    def make(visit: NodeView, nr: int) -> Step:
        dims = list(order(visit))
        back = [0, *(1 + dims.index(d) for d in range(len(dims)))]
        return Step(lambda t: t.permute(dims), lambda values: values.permute(back))

    return make


def _read_taken(visit: NodeView, nr: int) -> Push:
    dim, index = _positions(visit)
    first, last = int(index[0]), int(index[-1])
    if "Select" in visit.name:
        return lambda t: t.select(dim, first)
    step = int(index[1]) - first if len(index) > 1 else 1
    return lambda t: t[(slice(None),) * dim + (slice(first, last + 1, step),)]


def _read_part(visit: NodeView, nr: int) -> Push:
    dim = visit.dim(of=len(visit.input(0).shape))
    if "Unbind" in visit.name:
        return lambda t: t.select(dim, nr)
    sizes = _sizes(visit, dim)
    return lambda t: t.narrow(dim, sum(sizes[:nr]), sizes[nr])


_COPIES = "Alias Clone ToCopy"
_VIEWS = "ReshapeAlias UnsafeView View"
_UNIT_DIMS = "Squeeze Unsqueeze"
_PARTS = "Split SplitWithSizes Unbind UnsafeSplit UnsafeSplitWithSizes"

ISOMETRIES: dict[str, MakeStep] = {
    **named(_COPIES, _same),
    **named(f"{_VIEWS} {_UNIT_DIMS}", _view),
    **named("Transpose", _permutation_by(_transposed)),
    **named("T", _permutation_by(_reversed)),
    **named("Permute", _permutation_by(_permutation)),
    **named("Select Slice", _step(_read_taken)),
    **named(_PARTS, _step(_read_part)),
}

RULES: dict[str, Rule] = {
    **named(f"{_COPIES} {_VIEWS} {_UNIT_DIMS}", through),
    **named("Transpose", permuted(_transposed)),
    **named("T", permuted(_reversed)),
    **named("Permute", permuted(_permutation)),
    **named("Expand", expand),
    **named("Repeat", repeat),
    **named("Select Slice", taken),
    **named(_PARTS, parts),
    **named("Cat Stack", joins),
    **named("Flip", flip),
    **named("Roll", roll),
    **named("ConstantPadNd", pad),
    **named("Unfold", unfold),
    **named("Tril Triu", all_but(lambda visit: [len(visit.output().shape) - d for d in (1, 2)])),
}
