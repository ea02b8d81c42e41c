"""Views, permutations, slices, joins and splits: data moves, nothing is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.cotangent import Cotangent, index_tensor, reduce_to
from gramjd.engine.gaps import overlay
from gramjd.engine.isometry import Isometry, Part, Permute, View
from gramjd.engine.layout import Layout, Owners
from gramjd.engine.node import NodeView, Rule, Sends, UnsavedError
from gramjd.engine.rules.copies import by_forward, copies
from gramjd.engine.rules.strided import Strided
from gramjd.engine.rules.vocabulary import CUTS, apart, each, gathered, mixing, named, permuted, reshape_like, whole
from gramjd.engine.watch import watched


def _transposed(node: NodeView) -> list[int]:
    order = list(range(len(node.output().shape)))
    a, b = node.dim("dim0"), node.dim("dim1")
    if order:
        order[a], order[b] = order[b], order[a]
    return order


def _reversed(node: NodeView) -> list[int]:
    return list(range(len(node.output().shape)))[::-1]


def _permutation(node: NodeView) -> list[int]:
    count = len(node.output().shape)
    return [d % count for d in node.integers("dims")]


@each
def expand(node: NodeView, c: Cotangent) -> Sends:
    """The cotangent is summed over the expanded dimensions, where slices of a batch axis become rows."""
    yield node.send(0, c.layout, lambda: c.values, node.output().shape)


# -- parts ------------------------------------------------------------------------------------------------------------


def _positions(node: NodeView) -> tuple[int, Owners]:
    """Dimension and input positions that a slice or select takes."""
    sizes = node.integers("self_sym_sizes")
    dim = node.dim(of=len(sizes))
    if "Select" in node.name:
        return dim, np.array([node.integer("index") % sizes[dim]])
    start, end = (None if node.saved(name) is None else node.integer(name) for name in ("start", "end"))
    return dim, np.arange(sizes[dim])[start : end : node.integer("step")]


@each
def taken(node: NodeView, c: Cotangent) -> Sends:
    """Slice and select: zeros elsewhere, which belong to no loss."""
    dim, index = _positions(node)
    target = node.input(0).shape
    c = whole(node, c)
    shape = (*target[:dim], len(index), *target[dim + 1 :])
    layout = _scattered(c.layout, shape, dim, index, target)
    if layout is not None:
        where = _span(index)
        yield node.send(0, layout, lambda: _at(c.values.reshape(-1, *shape), dim, where, target), donated=True)


def _scattered(layout: Layout, shape: Sequence[int], dim: int, index: Owners, target: Sequence[int]) -> Layout | None:
    """Owners over `target` of a part of `dim`.

    Without another batch axis the part itself becomes one: the columns of a table of task outputs, or the samples of a
    loop over a batch, are then one stacked row together. A single loss needs no axis within its part, whatever of it
    it owns: the rest is zero.
    """
    if layout.stacked == layout.losses == 1:
        layout = layouts.dense([layout.owners.max()], math.prod(shape))
    where = layouts.diagonal_dims(layout, shape)
    assert where is not None, "made whole by the caller"
    if dim in where or (not where and len(index) < target[dim]):
        return layouts.scatter(layout, shape, dim, index, target[dim])
    return layouts.carry(layout, shape, target, {d: d for d in range(len(shape)) if d != dim})


def _span(index: Owners) -> slice:
    """Positions at equal distances as a slice: a plan that is kept should not keep all of them."""
    if not len(index):
        return slice(0, 0)
    return slice(int(index[0]), int(index[-1]) + 1, int(index[1] - index[0]) if len(index) > 1 else 1)


def _at(values: Tensor, dim: int, where: slice, target: Sequence[int]) -> Tensor:
    """Zeros of `target` with `values` at positions `where` of `dim`."""
    out = torch.zeros(len(values), *target, dtype=values.dtype, device=values.device)
    out[(slice(None),) * (1 + dim) + (where,)] = values
    return out


def _sizes(node: NodeView, dim: int) -> list[int]:
    """Lengths of a split's outputs along `dim`."""
    return [meta.shape[dim] for meta in node.outputs]


# Cotangents of a split's outputs that become one: its layout, and the values for each output.
Pieces = tuple[Layout, dict[int, Cotangent]]


def parts(node: NodeView) -> Sends:
    """Split, chunk and unbind: cotangents of all outputs with the same owners are joined in one tensor."""
    unbind = "Unbind" in node.name
    target = node.input(0).shape
    dim = node.dim(of=len(target))
    sizes = [1] * target[dim] if unbind else _sizes(node, dim)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found: dict[Layout, Pieces] = {}
    alone: list[Pieces] = []
    for nr, queue in node.arrivals.items():
        for c in queue:
            c = whole(node, c)
            shape = (*c.shape[:dim], 1, *c.shape[dim:]) if unbind else c.shape
            layout = _scattered(c.layout, shape, dim, np.arange(starts[nr], starts[nr + 1]), target)
            if layout is None:
                continue
            pieces = found.setdefault(layout, (layout, {}))[1]
            if nr in pieces:
                alone.append((layout, {nr: c.viewed(*shape)}))
            else:
                pieces[nr] = c.viewed(*shape)
    for layout, pieces in _merged([*found.values(), *alone]):
        yield node.send(0, layout, _joining(pieces, sizes, dim, target), donated=True)


def _merged(joined: list[Pieces]) -> list[Pieces]:
    """Put layouts together that own different slices: x.chunk(2) on the batch axis gives one row again."""
    out: list[Pieces] = []
    for layout, pieces in joined:
        for n, (other, have) in enumerate(out):
            both = overlay(other, layout)
            if both is not None and not set(have) & set(pieces):
                out[n] = (both, {**have, **pieces})
                break
        else:
            out.append((layout, pieces))
    return out


def _joining(pieces: dict[int, Cotangent], sizes: list[int], dim: int, target: Sequence[int]) -> Callable[[], Tensor]:
    def compute() -> Tensor:
        first = next(iter(pieces.values())).values

        def piece(nr: int) -> Tensor:
            if nr in pieces:
                return pieces[nr].values
            shape = [*target[:dim], sizes[nr], *target[dim + 1 :]]
            return torch.zeros(len(first), *shape, dtype=first.dtype, device=first.device)

        return torch.cat([piece(nr) for nr in range(len(sizes))], dim=1 + dim)

    return compute


# -- joins ------------------------------------------------------------------------------------------------------------


def joins(node: NodeView) -> Sends:
    """Cat and stack: each operand gets its part of the cotangent, with the owners of that part."""
    stack = "Stack" in node.name
    shape, dim = node.output().shape, node.dim()
    starts = list(range(len(node.inputs))) if stack else _starts(node, dim)
    given = [whole(node, c) for c in node.cotangents()]
    for edge in node.wanted:
        target = node.input(edge).shape
        length = 1 if stack else target[dim]
        for c in given:
            layout = gathered(c.layout, shape, dim, np.arange(starts[edge], starts[edge] + length))
            if layout is not None:
                yield node.send(edge, layout, _narrowed(c, dim, starts[edge], length, target))


def _narrowed(c: Cotangent, dim: int, start: int, length: int, target: Sequence[int]) -> Callable[[], Tensor]:
    return lambda: c.values.narrow(1 + dim, start, length).reshape(-1, *target)


def _starts(node: NodeView, dim: int) -> list[int]:
    """Where each operand of cat begins.

    Lengths of operands that lead nowhere are known to the node alone: it is watched as it cuts a cotangent.
    """
    lengths = [0 if target is None else target.shape[dim] if target.shape != (0,) else 0 for target in node.inputs]
    shape = node.output().shape
    if sum(lengths) == shape[dim]:
        return [sum(lengths[:edge]) for edge in range(len(lengths))]
    node.reads_data = True
    seen = watched(node.handle, shape, node.output().dtype)
    if seen is None:
        raise UnsavedError("lengths of its operands")
    stride = max(1, Strided.row_major(shape).strides[dim])
    return [0 if part is None else part.storage_offset() // stride for part in seen.results]


# -- moves ------------------------------------------------------------------------------------------------------------


def moves(positions: Callable[[NodeView], tuple[int, Owners]]) -> Rule:
    """Output position p of a dimension is input position index[p], each used once (flip, roll)."""

    def one(node: NodeView, c: Cotangent) -> Sends:
        dim, index = positions(node)
        back = np.argsort(index)
        node.reads_data |= index.size > layouts.SMALL  # a plan that is kept would keep it
        c = whole(node, c)
        where = layouts.diagonal_dims(c.layout, c.shape) or frozenset()
        target = node.input(0).shape
        layout = layouts.scatter(c.layout, c.shape, dim, index, target[dim]) if dim in where else c.layout
        if layout is not None:
            yield node.send(0, layout, lambda: c.values.index_select(1 + dim, index_tensor(back, c.values.device)))

    return each(one)


_flipped = copies(by_forward(lambda node, ladders: ladders[0].flip(node.integers("dims"))))
_rolled = copies(by_forward(lambda node, ladders: ladders[0].roll(node.integers("shifts"), node.integers("dims"))))


def flip(node: NodeView) -> Sends:
    """Flip along one dimension; several at once are found element by element."""
    dims = [d % len(node.output().shape) for d in node.integers("dims")]
    size = node.output().shape[dims[0]] if dims else 0
    return moves(lambda _: (dims[0], np.arange(size)[::-1]))(node) if len(dims) == 1 else _flipped(node)


def roll(node: NodeView) -> Sends:
    """Roll along one dimension; other forms are found element by element."""
    dims, shifts = node.integers("dims"), node.integers("shifts")
    if len(dims) != 1:
        return _rolled(node)
    dim = dims[0] % len(node.output().shape)
    size = node.output().shape[dim]
    return moves(lambda _: (dim, (np.arange(size) - shifts[0]) % size))(node)


@each
def repeat(node: NodeView, c: Cotangent) -> Sends:
    """Tile: [r0, n0, r1, n1, ..] summed over the r; copies of a batch axis keep their owners apart by rows."""
    target = node.input(0).shape
    repeats = node.integers("repeats")
    lead = len(repeats) - len(target)
    sizes = [1] * lead + list(target)
    wide = [n for r, size in zip(repeats, sizes, strict=True) for n in (r, size)]
    to = [n for size in sizes for n in (1, size)]
    c = node.densified(c, None, CUTS) if layouts.split(c.layout, wide) is None else c
    small = reduce_to(c.viewed(*wide), to, node.charge)
    yield node.send(0, small.layout, lambda: small.values.reshape(-1, *target))


def pad(node: NodeView) -> Sends:
    """Constant padding: the batch axes of the dimensions that are not padded."""
    shape, target = node.output().shape, node.input(0).shape
    return apart(lambda _: [{d: d for d in range(len(shape)) if shape[d] == target[d]}])(node)


# -- isometries: what a factor may pass through -----------------------------------------------------------------------

MakeIsometry = Callable[[NodeView, int], Isometry]


def _copy(node: NodeView, nr: int) -> Isometry:
    return Isometry(node.input(0).dtype)


def _view(node: NodeView, nr: int) -> Isometry:
    return View(None, node.input(0).shape, node.output(nr).shape)


def _permute(order: Callable[[NodeView], Sequence[int]]) -> MakeIsometry:
    return lambda node, nr: Permute(None, tuple(order(node)))


def _part_taken(node: NodeView, nr: int) -> Isometry:
    dim, index = _positions(node)
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    return Part(None, dim, node.input(0).shape[dim], int(index[0]), len(index), step, "Select" in node.name)


def _part_split(node: NodeView, nr: int) -> Isometry:
    target = node.input(0).shape
    dim = node.dim(of=len(target))
    if "Unbind" in node.name:
        return Part(None, dim, target[dim], nr, single=True)
    sizes = _sizes(node, dim)
    return Part(None, dim, target[dim], sum(sizes[:nr]), sizes[nr])


_COPIES = "Alias Clone ToCopy"
_VIEWS = "ReshapeAlias UnsafeView View"
_UNIT_DIMS = "Squeeze Unsqueeze"
_PARTS = "Split SplitWithSizes Unbind UnsafeSplit UnsafeSplitWithSizes"

ISOMETRIES: dict[str, MakeIsometry] = {
    **named(_COPIES, _copy),
    **named(f"{_VIEWS} {_UNIT_DIMS}", _view),
    **named("Transpose", _permute(_transposed)),
    **named("T", _permute(_reversed)),
    **named("Permute", _permute(_permutation)),
    **named("Select Slice", _part_taken),
    **named(_PARTS, _part_split),
}

RULES: dict[str, Rule] = {
    **named(f"{_COPIES} {_VIEWS} {_UNIT_DIMS}", reshape_like),
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
    **named("Tril Triu", mixing(lambda node: [len(node.output().shape) - d for d in (1, 2)])),
}
