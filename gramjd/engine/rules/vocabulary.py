"""Definers: each turns an algebraic fact about an operation into the rule of its backward node.

A rule decides which dimensions of the output keep the batch axis apart, and yields for each input a layout and a
function that calls the node (or a formula) on the stacked rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine._torch import is_python
from gramjd.engine.autograd import direct
from gramjd.engine.cotangent import Cotangent, add_rows, densify
from gramjd.engine.layout import Layout, Owners
from gramjd.engine.node import NodeView, Overwrite, Rule, Send, Sends
from gramjd.kernels.cost import IN_CACHE, chunk
from gramjd.kernels.symmetric import even

Entry = TypeVar("Entry")
DimMap = dict[int, int]
MIXES = "mixes the slices of the batch axis"
CUTS = "cuts across a batch axis that a reshape has merged"


def named(text: str, entry: Entry) -> dict[str, Entry]:
    """One entry for all backward nodes of some operations, whichever overload they came from."""
    return {f"{name}Backward{n}": entry for name in text.split() for n in range(7)}


# -- any node ---------------------------------------------------------------------------------------------------------


def dense_fallback(node: NodeView, reason: str = "has no rule that keeps a batch axis") -> Sends:
    """Any node at all: m dense rows, the node called for each of them (vectorised where vmap can)."""
    queues = {nr: [node.densified(c, None, reason) for c in queue] for nr, queue in node.arrivals.items()}
    owners = np.unique(np.concatenate([c.layout.owners for queue in queues.values() for c in queue]))
    owners = owners[owners >= 0]

    def call() -> list[Tensor | None]:
        return node.call([_on_rows(queues[nr], owners) if nr in queues else None for nr in range(len(node.outputs))])

    results = node.once(call)
    for edge in node.wanted:
        yield node.send(edge, layouts.dense(owners, math.prod(node.input(edge).shape)), _entry(results, edge))


def _entry(results: Callable[[], Sequence[Tensor | None]], edge: int) -> Callable[[], Tensor | None]:
    return lambda: results()[edge]


def _on_rows(cotangents: Sequence[Cotangent], owners: Owners) -> Tensor:
    first = cotangents[0]
    mine = first.layout.owners
    if len(cotangents) == 1 and mine.shape == owners.shape and (mine == owners).all():
        return first.values
    out = torch.zeros(len(owners), *first.shape, dtype=first.dtype, device=first.values.device)
    for one in cotangents:
        mine = one.layout.owners
        add_rows(out, np.where(mine >= 0, np.searchsorted(owners, mine), -1), one.values)
    return out


def of_real(rule: Rule) -> Rule:
    """A rule for real numbers only: complex operands and scales are conjugated, which is left to the node itself."""
    return lambda node: dense_fallback(node) if node.output().dtype.is_complex else rule(node)


def each(one: Callable[[NodeView, Cotangent], Sends]) -> Rule:
    """A rule from what is done with one cotangent of the output."""

    def rule(node: NodeView) -> Sends:
        for cotangent in node.cotangents():
            yield from one(node, cotangent)

    return rule


def stacked(cotangents: Sequence[Cotangent]) -> Tensor:
    """All rows as one tensor, so that a node is called (and its saved tensors read) once."""
    return cotangents[0].values if len(cotangents) == 1 else torch.cat([c.values for c in cotangents])


def unstacked(
    cotangents: Sequence[Cotangent], compute: Callable[[], Tensor | None]
) -> list[Callable[[], Tensor | None]]:
    """For each of the cotangents, its rows of what is computed for all of them."""
    if len(cotangents) == 1:
        return [compute]
    ends = list(np.cumsum([c.layout.stacked for c in cotangents]))

    def rows(end: int, count: int) -> Callable[[], Tensor | None]:
        def cut() -> Tensor | None:
            found = compute()
            return None if found is None else found[end - count : end]

        return cut

    return [rows(int(end), c.layout.stacked) for end, c in zip(ends, cotangents, strict=True)]


# -- element by element -----------------------------------------------------------------------------------------------


def pointwise(node: NodeView) -> Sends:
    """Output element e depends on element e of each operand (operands broadcast from the right)."""
    shape = node.output().shape
    apart = set(node.arrivals) == {0} and all(_broadcasts(node.input(e).shape, shape) for e in node.wanted)
    return _each_element(node) if apart else dense_fallback(node)


def _each_element(node: NodeView) -> Sends:
    cotangents, shape = node.cotangents(), node.output().shape
    results = node.once(lambda: _broadcast_call(node, stacked(cotangents)))
    for edge in node.wanted:
        for cotangent, values in zip(cotangents, unstacked(cotangents, _entry(results, edge)), strict=True):
            yield node.send(edge, cotangent.layout, values, shape)


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """False for the reduced form of a loss: its scalar output depends on every element."""
    return len(shape) <= len(to) and all(n in (1, to[len(to) - len(shape) + d]) for d, n in enumerate(shape))


def _broadcast_call(node: NodeView, values: Tensor) -> Sequence[Tensor | None]:
    """Pointwise formulas broadcast over a leading axis: no vmap needed."""
    outputs: list[Tensor | None] = [None] * len(node.outputs)
    outputs[0] = values[0] if len(values) == 1 else values
    if is_python(node.handle):
        outputs[0] = values
        return node.call(outputs)
    results = direct(node.handle, outputs)
    return [r if r is None or len(values) > 1 else r.unsqueeze(0) for r in results]


def overwriting(formula: Callable[[NodeView, Tensor], Tensor], strict: bool = False) -> Rule:
    """A pointwise operation that writes its result over the cotangent, where nothing else refers to that.

    New memory for a large cotangent costs more time than the operation, and would be one more copy at the peak.
    `formula(node, values)` overwrites `values`: [*shape] for one row, [K, *shape] for more unless it is `strict`.
    """

    otherwise = mixing(lambda _: []) if strict else pointwise

    def rule(node: NodeView) -> Sends:
        cotangents = node.cotangents()
        if len(cotangents) != 1 or not _may_overwrite(node, cotangents[0], strict):
            return otherwise(node)
        return _overwritten(node, cotangents[0], formula)

    return rule


def _overwritten(node: NodeView, cotangent: Cotangent, formula: Callable[[NodeView, Tensor], Tensor]) -> Sends:
    def compute() -> Tensor:
        values = cotangent.values.contiguous()
        formula(node, values[0] if len(values) == 1 else values)
        return values

    yield node.send(0, cotangent.layout, compute, donated=True)


def _may_overwrite(node: NodeView, cotangent: Cotangent, strict: bool) -> bool:
    meta = node.output()
    return (
        cotangent.donated
        and (cotangent.layout.stacked == 1 or not strict)
        and node.wants(0)
        and node.input(0) == meta
        and cotangent.dtype == meta.dtype
        and not meta.dtype.is_complex
    )


def overwrite(
    node: NodeView,
    cotangent: Cotangent,
    edge: int,
    parameters: Sequence[int],
    part: Callable[[Tensor, slice], Tensor],
) -> Overwrite | None:
    """How to send an input's rows in the memory of the cotangent that they come from; None if they do not fit.

    Args:
        node: with one cotangent.
        cotangent: that one, or a view of it: values [K, n, *], as rows [K n, *].
        edge: of an input [n, *].
        parameters: edges to which was sent, before, what refers to this memory; a weight's last.
        part: the result for some of the rows, and which they are.
    """
    target = node.input(edge)
    fits = target.shape[0] == cotangent.shape[0] and math.prod(target.shape) <= math.prod(cotangent.shape)
    alone = cotangent.donated and target.dtype == cotangent.dtype and len(node.cotangents()) == 1
    if not (fits and alone and node.wants(parameters[-1])):
        return None
    return Overwrite(cotangent, tuple(parameters), part)


def in_parts(rows: Tensor, out: Tensor, part: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """`out[which] = part(rows[which], which)` for some rows at a time, which stay in cache."""
    step = even(len(rows), min(chunk(), IN_CACHE) // max(1, out[:1].numel()))
    for lo in range(0, len(rows), step):
        which = slice(lo, min(lo + step, len(rows)))
        out[which].copy_(part(rows[which], which))
    return out


# -- dimensions -------------------------------------------------------------------------------------------------------


@each
def reshape_like(node: NodeView, cotangent: Cotangent) -> Sends:
    """The gradient passes unchanged, in row-major order: views, reshapes, copies, casts."""
    shape = (cotangent.layout.stacked, *node.input(0).shape)
    yield node.send(0, cotangent.layout, lambda: cotangent.values.reshape(shape), donated=cotangent.donated)


def apart(maps: Callable[[NodeView], Sequence[DimMap | None]], fresh: bool = False) -> Rule:
    """An operation that acts apart on each index of some dimensions and mixes the others.

    `maps` gives for each edge which output dimension is which input dimension; the node itself is called. An operand
    that lacks the batch axis, which the samples share, gets a row per sample; the others keep the axis. `fresh` says
    that the node puts its results into new memory, whatever it is given.
    """

    def rule(node: NodeView) -> Sends:
        shape, *others = {node.outputs[nr].shape for nr in node.arrivals}
        return dense_fallback(node) if others else _apart(node, list(maps(node)), shape, fresh)

    return rule


def _apart(node: NodeView, given: list[DimMap | None], shape: tuple[int, ...], fresh: bool) -> Sends:
    maps = {e: (given[e] if e < len(given) else None) or {} for e in node.wanted}
    arrived = [(nr, whole(node, c)) for nr, queue in node.arrivals.items() for c in queue]
    where: set[int] = set()
    for _, c in arrived:
        where |= layouts.diagonal_dims(c.layout, shape) or set()
    lacking: dict[frozenset[int], list[int]] = {}
    for edge, kept in maps.items():
        lacking.setdefault(frozenset(where - set(kept)), []).append(edge)
    if frozenset() not in lacking:
        common = set(range(len(shape))).intersection(*maps.values())
        kept_only = [(nr, node.keep_only(c, common, MIXES)) for nr, c in arrived]
        yield from _apart_at(node, kept_only, {e: {d: kept[d] for d in common} for e, kept in maps.items()}, fresh)
        return
    for dims, edges in lacking.items():
        # An operand that the others share has rows of its own; they lose no batch axis by that.
        spread = [(nr, densify(c, set(dims), node.charge) if dims else c) for nr, c in arrived]
        for send in _apart_at(node, spread, {e: maps[e] for e in edges}, fresh):
            yield send._replace(sums=bool(dims))


def _apart_at(
    node: NodeView, arrived: Sequence[tuple[int, Cotangent]], maps: dict[int, DimMap], fresh: bool
) -> Iterator[Send]:
    cotangents = [c for _, c in arrived]
    results = node.once(lambda: node.call([_rows_at(arrived, nr) for nr in range(len(node.outputs))]))
    for edge, kept in maps.items():
        for cotangent, values in zip(cotangents, unstacked(cotangents, _entry(results, edge)), strict=True):
            layout = layouts.carry(cotangent.layout, cotangent.shape, node.input(edge).shape, kept)
            yield node.send(edge, layout, values, donated=fresh)


def _rows_at(arrived: Sequence[tuple[int, Cotangent]], nr: int) -> Tensor | None:
    """The rows of output `nr`: its own cotangents, zeros for those of other outputs; None if it has none."""
    if all(place != nr for place, _ in arrived):
        return None
    if all(place == nr for place, _ in arrived):
        return stacked([c for _, c in arrived])
    return torch.cat([c.values if place == nr else torch.zeros_like(c.values) for place, c in arrived])


def mixing(dims: Callable[[NodeView], Sequence[int]], fresh: bool = False) -> Rule:
    """Input and output have the same dimensions, of which `dims` are mixed."""

    def maps(node: NodeView) -> list[DimMap | None]:
        mixed = set(dims(node))
        shape = node.output().shape
        same = {d: d for d in range(len(shape)) if d not in mixed}
        return [same if t is not None and len(t.shape) == len(shape) else {} for t in node.inputs]

    return apart(maps, fresh)


def batch_leading(count: Callable[[NodeView], int]) -> Rule:
    """The first `count` dimensions are apart in the output and in every input."""

    def maps(node: NodeView) -> list[DimMap | None]:
        shape = node.output().shape
        out: list[DimMap | None] = []
        for edge in range(len(node.inputs)):
            target = node.input(edge).shape if node.wants(edge) else ()
            out.append({d: d for d in range(min(count(node), len(target))) if target[d] == shape[d]})
        return out

    return apart(maps)


def permuted(order: Callable[[NodeView], Sequence[int]]) -> Rule:
    """Output dimension d is input dimension order[d]."""

    def one(node: NodeView, cotangent: Cotangent) -> Sends:
        forward = list(order(node))
        back = [0] + [1 + forward.index(d) for d in range(len(forward))]
        cotangent = whole(node, cotangent)
        layout = layouts.carry(cotangent.layout, node.output().shape, node.input(0).shape, dict(enumerate(forward)))
        yield node.send(0, layout, lambda: cotangent.values.permute(back), donated=cotangent.donated)

    return each(one)


def whole(node: NodeView, cotangent: Cotangent) -> Cotangent:
    """Give up batch axes that overlap a dimension without nesting in it."""
    if layouts.diagonal_dims(cotangent.layout, cotangent.shape) is None:
        return node.densified(cotangent, None, CUTS)
    return cotangent


def gathered(layout: Layout, shape: Sequence[int], dim: int, index: Owners) -> Layout | None:
    """Owners of the positions `index` of a dimension; None if no loss owns any."""
    where = layouts.diagonal_dims(layout, shape)
    assert where is not None, "made whole by the caller"
    if dim in where:
        return layouts.gather(layout, shape, dim, index)
    middle = [n if d != dim else len(index) for d, n in enumerate(shape)]
    return layouts.carry(layout, shape, middle, {d: d for d in range(len(shape)) if d != dim})


def reduction(
    dims: Callable[[NodeView], Sequence[int]],
    keepdim: Callable[[NodeView], bool],
    scale: Callable[[NodeView], float] | None = None,
) -> Rule:
    """Sum or mean over dimensions: the cotangent is expanded."""

    def one(node: NodeView, cotangent: Cotangent) -> Sends:
        target = node.input(0).shape
        gone = {d % max(1, len(target)) for d in dims(node)} or set(range(len(target)))
        kept = [d for d in range(len(target)) if d not in gone]
        from_dim = {d: d for d in kept} if keepdim(node) else dict(enumerate(kept))
        flat = [1 if d in gone else n for d, n in enumerate(target)]
        factor = None if scale is None else scale(node)
        cotangent = whole(node, cotangent)
        layout = layouts.carry(cotangent.layout, node.output().shape, target, from_dim)
        yield node.send(0, layout, lambda: _expanded(cotangent.values, flat, target, factor))

    return each(one)


def _expanded(values: Tensor, flat: list[int], target: tuple[int, ...], factor: float | None) -> Tensor:
    scaled = values if factor is None else values * factor
    return scaled.reshape(len(values), *flat).expand(len(values), *target)
