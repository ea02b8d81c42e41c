"""Edits in place, strided views, windows: what is written to a part of a tensor, and what shares its memory.

An edit's node shows neither the part nor the operation. Both are seen by watching it (`engine.watch`): the part is
what the node takes from its cotangent, and an operation that works element by element keeps every batch axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.layout import Layout
from gramjd.engine.node import NodeView, Rule, Sends
from gramjd.engine.rules.strided import (
    MOST_LOOKED_UP,
    Strided,
    can_look_up,
    dimensions_kept,
    laid_out,
    owned_by_readers,
    owners_of_part,
    summed_at,
)
from gramjd.engine.rules.vocabulary import apart, dense_fallback, each, named, stacked, unstacked
from gramjd.engine.watch import Step, Watched, watched

FAR = "edits a part with too many elements to look up who owns each"
# What a part of the cotangent becomes on its way to an edge.
NOTHING, SAME, ELEMENTWISE = "nothing", "same", "elementwise"

# Operations that make zeros, that hand on what they are given, and that work element by element without saying so.
_ZEROS = {"aten::zeros", "aten::zeros_like", "aten::new_zeros"}
_HANDED_ON = {"aten::_to_copy", "aten::alias", "aten::clone", "aten::detach", "aten::lift_fresh"}
_ELEMENTWISE = {
    "aten::elu_backward",
    "aten::full_like",
    "aten::glu_backward_jvp",
    "aten::hardshrink_backward",
    "aten::hardsigmoid_backward",
    "aten::hardswish_backward",
    "aten::hardtanh_backward",
    "aten::index_fill",
    "aten::leaky_relu_backward",
    "aten::log_sigmoid_backward",
    "aten::masked_fill_",
    "aten::mish_backward",
    "aten::ones_like",
    "aten::softplus_backward",
    "aten::softshrink_backward",
}


class Edit(NamedTuple):
    """How the part lies in its base, and what it becomes on its way to each edge."""

    base: Strided
    part: Strided
    becomes: tuple[str, ...]


def _edit_of(node: NodeView) -> Edit | None:
    """What an edit does; None if it cannot be told, or mixes elements."""
    seen = _watched(node)
    if seen is None or len(seen.results) < len(node.inputs):
        return None
    steps, written = list(seen.steps), None
    if seen.results[0] is not None:
        # What was done with the part is written to where it was.
        written = steps.pop().given[-1]
    cloned = next((n for n, step in enumerate(steps) if step.name == "aten::clone"), None)
    if cloned is None:
        return None
    kinds = _followed(steps[cloned + 1 :], steps[cloned].made[0])
    base, part = Strided.of(steps[0].made[0]), Strided.of(steps[cloned].given[0])
    if kinds is None or base.sizes != node.output().shape or not base.disjoint:
        return None
    becomes = [NOTHING if end is None else kinds.get(id(end), "") for end in (written, *seen.results[1:])]
    return Edit(base, part, tuple(becomes)) if "" not in becomes else None


def _followed(steps: list[Step], part: Tensor) -> dict[int, str] | None:
    """What each tensor is that was made of the part, by its id; None if an operation is not known to be elementwise."""
    kinds = {id(part): SAME}
    for step in steps:
        given = {kinds[id(t)] for t in step.given if id(t) in kinds}
        if step.name in _ZEROS:
            kinds.update((id(t), NOTHING) for t in step.made)
        elif given and step.name in _HANDED_ON:
            kinds.update((id(t), kinds[id(step.given[0])]) for t in step.made)
        elif given:
            elementwise = torch.Tag.pointwise in step.operation.tags or step.name in _ELEMENTWISE
            if not elementwise or any(t.shape != part.shape for t in step.made):
                return None
            kinds.update((id(t), ELEMENTWISE) for t in step.made)
    return kinds


def _watched(node: NodeView) -> Watched | None:
    """What the node does, watched once per graph."""
    assert node.graph is not None, "a view is bound to a node while its rule decides"
    known, meta = node.graph.watched, node.output()
    if node.handle not in known:
        known[node.handle] = watched(node.handle, meta.shape, meta.dtype)
    # Two nodes that differ in nothing that a plan looks at may do different things.
    node.reads_data = True
    found: Watched | None = known[node.handle]
    return found


def edited(node: NodeView) -> Sends:
    """An operation in place on a part of a tensor: edge 0 is that tensor, the others are the operation's operands."""
    edit = _edit_of(node)
    return dense_fallback(node) if edit is None else _edited(node, edit)


def _edited(node: NodeView, edit: Edit) -> Sends:
    given = [_fitted(node, c, edit) for c in node.cotangents()]
    results = node.once(lambda: node.call([stacked(given)]))
    for edge in reversed(node.wanted):  # the base last: what its rows lie in may be written over
        computed = unstacked(given, partial(_entry, results, edge))
        for c, values in zip(given, computed, strict=True):
            layout = owners_of_part(c.layout, edit.base, edit.part) if edge else c.layout
            if layout is None or (edge and edit.becomes[edge] == NOTHING):
                continue
            shape = edit.part.sizes if edge else None
            called = edit.becomes[edge] == ELEMENTWISE
            compute = values if called else _moved(c, edit, edge, len(given) == 1)
            yield node.send(edge, layout, compute, shape, donated=not called)


def _entry(results: Callable[[], list[Tensor | None]], edge: int) -> Tensor | None:
    return results()[edge]


def _fitted(node: NodeView, c: Cotangent, edit: Edit) -> Cotangent:
    """Without a batch axis where the owners of a part are too many to look up."""
    known = len(edit.becomes) == 1 or can_look_up(c.layout, edit.base, edit.part)
    return c if known else node.densified(c, None, FAR)


def _moved(c: Cotangent, edit: Edit, edge: int, alone: bool) -> Callable[[], Tensor]:
    size = max(edit.base.end, edit.part.end)

    def part() -> Tensor:
        return edit.part.rows(laid_out(c.values, edit.base, size, fresh=False)).clone()

    def rest() -> Tensor:
        memory = laid_out(c.values, edit.base, size, fresh=not (alone and c.donated))
        if edit.becomes[0] == NOTHING:
            edit.part.rows(memory).zero_()
        return edit.base.rows(memory)

    return part if edge else rest


@each
def copied(node: NodeView, c: Cotangent) -> Sends:
    """A tensor written as a whole: nothing is left of what it was, and what was written may be broadcast."""
    yield node.send(1, c.layout, lambda: c.values, node.output().shape)


def scattered(node: NodeView) -> Sends:
    """A row-major tensor with another one in the place of a strided part.

    What the tensor itself receives is left to the node: releases of PyTorch differ, but each works element by element.
    """
    given = node.saved("storage_offset") is not None
    offset = node.integer("storage_offset") if given else 0
    part = Strided(tuple(node.integers("size")), tuple(node.integers("stride")), offset)
    edit = Edit(Strided.row_major(node.output().shape), part, (ELEMENTWISE, SAME))
    return _edited(node, edit) if given and part.disjoint else dense_fallback(node)


# -- strided views ----------------------------------------------------------------------------------------------------


def _view_of(node: NodeView) -> tuple[Strided, Strided] | None:
    """How a view and what it is a view of lie in one memory; None if that cannot be told, or the latter overlaps."""
    seen = _watched(node)
    laid = [step for step in seen.steps if step.name == "aten::as_strided"] if seen is not None else []
    if seen is None or len(laid) != 2 or seen.results[0] is None:
        return None
    # Along dimensions of stride 0 the node adds up first.
    offset = int(laid[0].made[0].storage_offset())
    view = Strided(tuple(node.integers("size")), tuple(node.integers("stride")), offset)
    base = Strided.of(laid[1].made[0])
    fits = view.sizes == node.output().shape and base.sizes == node.input(0).shape
    return (view, base) if fits and base.disjoint else None


def as_strided(node: NodeView) -> Sends:
    """A strided view of a tensor's memory, such as windows that overlap: elements read twice are summed."""
    found = _view_of(node)
    return dense_fallback(node) if found is None else _viewed(node, *found)


def _viewed(node: NodeView, view: Strided, base: Strided) -> Sends:
    kept = dimensions_kept(view, base)
    for c in node.cotangents():
        where, layout = layouts.diagonal_dims(c.layout, c.shape), None
        if where is not None and where <= set(kept):
            layout = layouts.carry(c.layout, c.shape, base.sizes, kept)
        elif c.numel <= MOST_LOOKED_UP:
            layout = _by_readers(c.layout, view, base)
        if layout is None:
            c = node.densified(c, None, "reads elements for several losses")
            layout = layouts.dense(c.layout.owners, math.prod(base.sizes))
        yield node.send(0, layout, partial(_summed, c, view, base), donated=True)


def _summed(c: Cotangent, view: Strided, base: Strided) -> Tensor:
    return summed_at(c.values, view, base)


@layouts.cached
def _by_readers(layout: Layout, view: Strided, base: Strided) -> Layout | None:
    return owned_by_readers(layout, base.numbers(view.end)[view.addresses()], base.sizes)


def unfold(node: NodeView) -> Sends:
    """Windows along one dimension, laid out in a new last one."""
    count = len(node.input(0).shape)
    dim = node.dim("dimension", of=count)
    return apart(lambda _: [{d: d for d in range(count) if d != dim}])(node)


def unfold_twice(node: NodeView) -> Sends:
    """The derivative of windows' own derivative, which takes the windows of the cotangent."""
    count = len(node.output().shape)
    dim = node.dim(of=count)
    return apart(lambda _: [{d: d for d in range(count) if d != dim}])(node)


RULES: dict[str, Rule] = {
    "torch::autograd::CopySlices": edited,
    "torch::autograd::CopyBackwards": copied,
    **named("AsStrided", as_strided),
    **named("AsStridedScatter", scattered),
    **named("Unfold", unfold),
    **named("UnfoldBackward", unfold_twice),
}
