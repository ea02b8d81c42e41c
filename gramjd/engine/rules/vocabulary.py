"""Definers: each turns an algebraic fact about an operation into the rule of its backward node.

A rule takes a `NodeView`, asks which dimensions of the output keep the batch axis apart, calls the node (or a formula) on
the stacked rows and sends one cotangent to each input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine._torch import is_python
from gramjd.engine.autograd import direct
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.node import NodeView
from gramjd.kernels.cost import slab
from gramjd.kernels.symmetric import even

Rule = Callable[[NodeView], None]
Entry = TypeVar("Entry")
DimMap = dict[int, int]
# Elements that are written over at a time: where they stay in cache, it is quicker than writing to new memory.
IN_CACHE = 1 << 18
MIXES = "mixes the slices of the batch axis"
CUTS = "cuts across a batch axis that a reshape has merged"


def named(text: str, entry: Entry) -> dict[str, Entry]:
    """One entry for all backward nodes of some operations, whichever overload they came from."""
    return {f"{name}Backward{n}": entry for name in text.split() for n in range(7)}


def opaque(visit: NodeView) -> None:
    """Any node at all: m dense rows, the node called for each of them (vectorised where vmap can)."""
    groups = {
        nr: [visit.densified(g, None, "has no rule that keeps a batch axis") for g in queue]
        for nr, queue in visit.arrivals.items()
    }
    owners = np.unique(np.concatenate([g.layout.rows for queue in groups.values() for g in queue]))
    owners = owners[owners >= 0]
    shapes = [meta.shape for meta in visit.graph.metadata(visit.node)]
    values: list[Tensor | None] = [None] * len(shapes)
    if not visit.dry:
        for nr, queue in groups.items():
            values[nr] = _on_rows(queue, owners)
    pulled = visit.pulled(values)
    for edge in range(len(visit.edges)):
        if visit.wants(edge):
            value = pulled[edge]
            shape = visit.input(edge).shape if value is None else tuple(value.shape[1:])
            visit.send(edge, layouts.dense(owners, math.prod(shape)), value, shape)


def of_real(rule: Rule) -> Rule:
    """A rule for real numbers only: complex operands and scales are conjugated, which is left to the node itself."""
    return lambda visit: opaque(visit) if visit.output().dtype.is_complex else rule(visit)


def _on_rows(groups: list[Cotangent], owners: layouts.Rows) -> Tensor:
    first = groups[0].values
    if len(groups) == 1 and groups[0].layout.rows.shape == owners.shape and (groups[0].layout.rows == owners).all():
        return first
    out = torch.zeros(len(owners), *first.shape[1:], dtype=first.dtype, device=first.device)
    for group in groups:
        live = np.flatnonzero(group.layout.rows >= 0)
        place = layouts.placed(np.searchsorted(owners, group.layout.rows[live]), out.device)
        out.index_add_(0, place, group.values[layouts.placed(live, out.device)])
    return out


def stacked(groups: Sequence[Cotangent]) -> Tensor:
    """All groups' rows as one tensor, so that a node is called (and its saved tensors read) once."""
    return groups[0].values if len(groups) == 1 else torch.cat([g.values for g in groups])


def unstacked(groups: Sequence[Cotangent], values: Tensor | None) -> list[Tensor | None]:
    """Cut a result back into the groups' rows."""
    if values is None:
        return [None] * len(groups)
    return list(values.split([g.layout.stacked for g in groups]))


def pointwise(visit: NodeView) -> None:
    """Output element e depends on element e of each operand (operands broadcast from the right)."""
    groups = visit.groups()
    shape = visit.output().shape
    if set(visit.arrivals) != {0}:
        opaque(visit)
        return
    if not all(_broadcasts(visit.input(e).shape, shape) for e in range(len(visit.edges)) if visit.wants(e)):
        opaque(visit)
        return
    if visit.dry:
        results: list[Tensor | None] = [None] * len(visit.edges)
    else:
        results = _broadcast_call(visit, stacked(groups))
        expected = (sum(g.layout.stacked for g in groups), *shape)
        if any(visit.wants(e) and r is not None and tuple(r.shape) != expected for e, r in enumerate(results)):
            opaque(visit)
            return
    for edge in range(len(visit.edges)):
        if visit.wants(edge) and (visit.dry or results[edge] is not None):
            for group, value in zip(groups, unstacked(groups, results[edge]), strict=True):
                visit.send(edge, group.layout, value, shape)


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """False for the reduced form of a loss: its scalar output depends on every element."""
    return len(shape) <= len(to) and all(n in (1, to[len(to) - len(shape) + d]) for d, n in enumerate(shape))


def _broadcast_call(visit: NodeView, values: Tensor) -> list[Tensor | None]:
    """Pointwise formulas broadcast over a leading axis: no vmap needed."""
    outputs: list[Tensor | None] = [None] * len(visit.graph.metadata(visit.node))
    outputs[0] = values[0] if len(values) == 1 else values
    if is_python(visit.node):
        outputs[0] = values
        return visit.pulled(outputs)
    results = direct(visit.node, outputs)
    return [r if r is None or len(values) > 1 else r.unsqueeze(0) for r in results]


def overwriting(formula: Callable[[NodeView, Tensor], Tensor], strict: bool = False) -> Rule:
    """A pointwise operation that writes its result over the cotangent, where nobody else has that.

    New memory for a large cotangent costs more time than the operation, and would be one more copy at the peak.
    `formula(visit, values)` overwrites `values`: [*shape] for one row, [K, *shape] for more unless it is `strict`.
    """

    otherwise = all_but(lambda _: []) if strict else pointwise

    def rule(visit: NodeView) -> None:
        groups = visit.groups()
        if len(groups) != 1 or not _may_overwrite(visit, groups[0], strict):
            otherwise(visit)
            return
        values = groups[0].values
        if not visit.dry:
            formula(visit, values[0] if len(values) == 1 else values)
        visit.send(0, groups[0].layout, values, owned=True)

    return rule


def _may_overwrite(visit: NodeView, group: Cotangent, strict: bool) -> bool:
    values, meta = group.values, visit.input(0)
    return (
        group.owned
        and (len(values) == 1 or not strict)
        and values.is_contiguous()
        and meta == visit.output()
        and values.dtype == meta.dtype
        and not values.dtype.is_complex
        and visit.node not in visit.graph.hooks.nodes
    )


def written_over(
    visit: NodeView,
    group: Cotangent,
    edge: int,
    parameters: Sequence[int],
    compute: Callable[[Tensor, slice], Tensor],
) -> Tensor | None:
    """What `compute(rows, which)` makes of the rows of a group, some at a time, in the memory of the group.

    Args:
        visit: of a node that is asked for the cotangent of its input at `edge`.
        group: values [K, n, *]; as rows they are [K n, *].
        edge: of an input [n, *].
        parameters: edges to which was sent what refers to this memory, a weight's last. They are settled.
        compute: from some of the rows, and which they are.

    Returns:
        [K n, *]; or None, and nothing was written: where it would not fit, somebody else refers to the memory, or the
        result is so small that it may have memory of its own.
    """
    values, target = group.values, visit.input(edge)
    count, shape = values.shape[0] * values.shape[1], target.shape[1:]
    size = math.prod(shape)
    fits = slab() < count * size <= values.numel() and target.shape[0] == values.shape[1]
    alone = group.owned and values.is_contiguous() and target.dtype == values.dtype and len(visit.groups()) == 1
    if not (fits and alone and visit.wants(parameters[-1])):
        return None
    settled = [visit.settle(parameter) for parameter in parameters]
    if not all(settled):
        return None
    out = values.view(-1)[: count * size].view(count, *shape)
    return out if visit.dry else in_parts(values.flatten(0, 1), out, compute)


def in_parts(rows: Tensor, out: Tensor, compute: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """`out[which] = compute(rows[which], which)` for some rows at a time, which stay in cache."""
    step = even(len(rows), min(slab(), IN_CACHE) // max(1, out[:1].numel()))
    for lo in range(0, len(rows), step):
        which = slice(lo, min(lo + step, len(rows)))
        out[which].copy_(compute(rows[which], which))
    return out


def each(one: Callable[[NodeView, Cotangent], None]) -> Rule:
    """A rule from what is done with one group of rows."""

    def rule(visit: NodeView) -> None:
        for group in visit.groups():
            one(visit, group)

    return rule


@each
def through(visit: NodeView, group: Cotangent) -> None:
    """The gradient passes unchanged, in row-major order: views, reshapes, copies, casts."""
    target = visit.input(0).shape
    visit.send(0, group.layout, lambda: group.values.reshape(group.layout.stacked, *target), owned=group.owned)


def carried(maps: Callable[[NodeView], Sequence[DimMap | None]], fresh: bool = False) -> Rule:
    """An operation that acts apart on each index of some dimensions and mixes the others.

    `maps` gives for each edge which output dimension is which input dimension; the node itself is called. `fresh` says
    that the node puts its results into new memory, whatever it is given.
    """

    def rule(visit: NodeView) -> None:
        given = list(maps(visit))
        per_edge = given + [None] * (len(visit.edges) - len(given))
        wanted = [m for e, m in enumerate(per_edge) if visit.wants(e)]
        metas = visit.graph.metadata(visit.node)
        shapes = {metas[nr].shape for nr in visit.arrivals}
        if len(shapes) > 1:
            opaque(visit)
            return
        (shape,) = shapes
        common = {d for d in range(len(shape)) if all(m is not None and d in m for m in wanted)}
        arrived = [(nr, visit.keep_only(g, common, MIXES)) for nr, queue in visit.arrivals.items() for g in queue]
        groups = [g for _, g in arrived]
        results = visit.pulled([_placed_rows(arrived, nr) for nr in range(len(metas))] if not visit.dry else [])
        for edge, to_dim in enumerate(per_edge):
            if visit.wants(edge):
                kept = {d: e for d, e in (to_dim or {}).items() if d in common}
                for group, value in zip(groups, unstacked(groups, results[edge]), strict=True):
                    target = visit.input(edge).shape
                    visit.send(edge, layouts.carry(group.layout, shape, target, kept), value, owned=fresh)

    return rule


def _placed_rows(arrived: Sequence[tuple[int, Cotangent]], nr: int) -> Tensor | None:
    """The rows of output `nr`: its own cotangents, zeros for those of other outputs; None if it has none."""
    if all(place != nr for place, _ in arrived):
        return None
    if all(place == nr for place, _ in arrived):
        return stacked([g for _, g in arrived])
    return torch.cat([g.values if place == nr else torch.zeros_like(g.values) for place, g in arrived])


def all_but(dims: Callable[[NodeView], Sequence[int]], fresh: bool = False) -> Rule:
    """Input and output have the same dimensions, of which `dims` are mixed."""

    def maps(visit: NodeView) -> list[DimMap | None]:
        mixed = set(dims(visit))
        shape = visit.output().shape
        same = {d: d for d in range(len(shape)) if d not in mixed}
        targets = [visit.input(e).shape if visit.wants(e) else None for e in range(len(visit.edges))]
        return [same if t is not None and len(t) == len(shape) else {} for t in targets]

    return carried(maps, fresh)


def leading(count: Callable[[NodeView], int]) -> Rule:
    """The first `count` dimensions are apart in the output and in every input."""

    def maps(visit: NodeView) -> list[DimMap | None]:
        shape = visit.output().shape
        out: list[DimMap | None] = []
        for edge in range(len(visit.edges)):
            target = visit.input(edge).shape if visit.wants(edge) else ()
            out.append({d: d for d in range(min(count(visit), len(target))) if target[d] == shape[d]})
        return out

    return carried(maps)


def permuted(order: Callable[[NodeView], Sequence[int]]) -> Rule:
    """Output dimension d is input dimension order[d]."""

    def one(visit: NodeView, group: Cotangent) -> None:
        forward = list(order(visit))
        back = [0] + [1 + forward.index(d) for d in range(len(forward))]
        group = whole(visit, group)
        layout = layouts.carry(group.layout, visit.output().shape, visit.input(0).shape, dict(enumerate(forward)))
        visit.send(0, layout, lambda: group.values.permute(back), owned=group.owned)

    return each(one)


def whole(visit: NodeView, group: Cotangent) -> Cotangent:
    """Give up batch axes that overlap a dimension without nesting in it."""
    if layouts.diagonal_dims(group.layout, group.shape) is None:
        return visit.densified(group, None, CUTS)
    return group


def reduction(
    dims: Callable[[NodeView], Sequence[int]],
    keepdim: Callable[[NodeView], bool],
    scale: Callable[[NodeView], float] | None = None,
) -> Rule:
    """Sum or mean over dimensions: the cotangent is expanded."""

    def one(visit: NodeView, group: Cotangent) -> None:
        target = visit.input(0).shape
        gone = {d % max(1, len(target)) for d in dims(visit)} or set(range(len(target)))
        kept = [d for d in range(len(target)) if d not in gone]
        from_dim = {d: d for d in kept} if keepdim(visit) else dict(enumerate(kept))
        flat = [1 if d in gone else n for d, n in enumerate(target)]
        factor = None if scale is None else scale(visit)
        group = whole(visit, group)
        layout = layouts.carry(group.layout, visit.output().shape, target, from_dim)
        visit.send(0, layout, lambda: _expanded(group.values, flat, target, factor))

    return each(one)


def _expanded(values: Tensor, flat: list[int], target: tuple[int, ...], factor: float | None) -> Tensor:
    scaled = values if factor is None else values * factor
    return scaled.reshape(len(values), *flat).expand(len(values), *target)
