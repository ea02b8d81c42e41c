"""From losses to Gramians, norms, rectangles, columns: one walk, or walks for pairs of blocks of losses."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import dtensor, hooks
from gramjd.engine import graph as graphs
from gramjd.engine.autograd import plainly
from gramjd.engine.choice import Choice, choose
from gramjd.engine.consumers.columns import Columns, Combine
from gramjd.engine.consumers.cross import Rectangle
from gramjd.engine.consumers.gramian import Gramian, Total
from gramjd.engine.consumers.rows import Rows
from gramjd.engine.consumers.update import Kept
from gramjd.engine.graph import SPREAD, Edge, Graph, Selected
from gramjd.engine.layout import Mask, Owners
from gramjd.engine.memory import NO_LIMITS, MemoryLimits, Meter, OverBudgetError
from gramjd.engine.node import LostAxis
from gramjd.engine.notices import name_others, notify
from gramjd.engine.parameter import Jacobian
from gramjd.engine.structure import structured
from gramjd.engine.walk import OnTarget, walked
from gramjd.errors import BudgetError, GraphError, InputError, in_bytes
from gramjd.kernels.products import library_fixed


def read(
    losses: Sequence[Tensor],
    inputs: Sequence[Tensor] | None,
    missing_ok: bool = False,
    everything: bool = False,
    beside: Sequence[Tensor] | None = None,
    spread: bool = False,
) -> Graph:
    """The graph between losses and inputs, with its hooks.

    `everything`: where no inputs are named, leaves that are no parameters are targets as well. `beside`: further
    inputs, whatever `inputs` are. `spread`: the caller can deal with models that are spread over processes.
    """
    graph = graphs.read(losses, inputs, missing_ok)
    if everything:
        graph.targets |= graph.others
    if beside is not None:
        graph.targets |= graphs.chosen(graph, beside)
    graph.hooks = hooks.find(structured(graph))
    if graph.sharded is not None:
        graph.sharded = graph.sharded if graph.sharded.met(graph) else None
    if graph.spread and not spread:
        raise GraphError(SPREAD)
    return graph


def total(
    losses: Sequence[Tensor],
    inputs: Sequence[Tensor] | None,
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    kind: type[Total] = Gramian,
) -> Tensor:
    """The Gramian [m, m] (or another kind of total) of the losses over the inputs; the graph stays usable."""
    return total_of(read(losses, inputs, spread=True), losses, dtype, memory_budget, kind)


def total_of(
    graph: Graph,
    losses: Sequence[Tensor],
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    kind: type[Total] = Gramian,
) -> Tensor:
    """The same for a graph that was read."""
    name_others(graph)
    found, limits = _empty(graph, losses, kind, dtype), MemoryLimits.of(losses, memory_budget)
    choice = choose(graph, losses, limits, list(graph.targets))
    if choice.passes:
        by_passes(graph, losses, choice, found, list(graph.targets))
    elif graph.spread:  # the ranks walk together: none may walk several times
        what = "a Gramian of a model that is spread over processes needs the rows of all losses"
        notify(at_once(graph, losses, lambda _, jacobian: found.add_share(jacobian), limits, what))
    else:
        notify(_add_all(graph, losses, dict.fromkeys(graph.targets, found), limits))
    return found.finished() if graph.mesh is None else dtensor.summed(found.finished(), graph.mesh)


def by_passes(
    graph: Graph,
    losses: Sequence[Tensor],
    choice: Choice,
    total: Total,
    counted: Sequence[Edge],
    more: Sequence[Edge] = (),
    summed: Sequence[Edge] = (),
) -> Rows:
    """Add the shares of the inputs in `counted` by passes; gives rows of those and of `more`, and sums of `summed`."""
    assert choice.survey is not None, "passes are chosen by a survey"
    with plainly(), library_fixed():
        rows = Rows(graph, losses, choice.survey, [*counted, *more], set(counted), summed)
        rows.add_to(total)
    return rows


def shares(
    losses: Sequence[Tensor],
    inputs: Sequence[Tensor] | None,
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    kind: type[Total] = Gramian,
) -> list[tuple[Tensor, Tensor]]:
    """Each input with its own share of the total."""
    graph = read(losses, inputs)
    name_others(graph)
    totals = {edge: _empty(graph, losses, kind, dtype) for edge in graph.targets}
    notify(_add_all(graph, losses, totals, MemoryLimits.of(losses, memory_budget)))
    return [(tensor, totals[edge].finished()) for edge, tensor in graph.targets.items()]


def gramian_and_rows(
    graph: Graph, losses: Sequence[Tensor], targets: Sequence[Tensor] | None, memory_budget: int | None
) -> tuple[Tensor, Kept]:
    """The Gramian over the inputs of a graph, and the Jacobians of `targets` as far as they can be kept."""
    found, limits = _empty(graph, losses, Gramian, None), MemoryLimits.of(losses, memory_budget)
    kept = Kept(graph, targets, int(limits.kept))
    name_others(graph)
    counted = [edge for edge in graph.targets if edge not in graph.others]
    more = [edge for edge in graph.others if kept.limit and kept.wants(edge)]
    choice = choose(graph, losses, limits, [*counted, *more], reuse=kept.limit > 0)
    if choice.passes:
        kept.take(by_passes(graph, losses, choice, found, counted, more))
        return found.finished(), kept
    notify(_add_all(graph, losses, dict.fromkeys(counted, found), limits, kept))
    return found.finished(), kept


def combine_columns(
    losses: Sequence[Tensor], inputs: Sequence[Tensor] | None, combine: Combine, memory_budget: int | None
) -> Columns:
    """`combine` ([m, d] to [d]) applied to the columns of J, input by input."""
    graph = read(losses, inputs, everything=True)
    columns = Columns(graph, sum(loss.numel() for loss in losses), combine)
    limits = MemoryLimits.of(losses, memory_budget)
    notify(at_once(graph, losses, columns.note, limits, "an aggregator that needs J needs the rows of all losses"))
    return columns


def rectangle(
    losses: Sequence[Tensor],
    others: Sequence[Tensor],
    inputs: Sequence[Tensor] | None,
    dtype: torch.dtype | None,
    memory_budget: int | None,
) -> Tensor:
    """`J J'^T` [m, m'] for the Jacobians J of `losses` and J' of `others`; both graphs stay usable."""
    mine, theirs = (read(side, inputs, missing_ok=True) for side in (losses, others))
    _check_either_reached(inputs, (mine, theirs))
    wide = torch.promote_types(accumulation_dtype(losses, mine, dtype), accumulation_dtype(others, theirs, dtype))
    m, n = (sum(loss.numel() for loss in side) for side in (losses, others))
    found = Rectangle((mine, theirs), (m, n), losses[0].device, wide)
    limits = MemoryLimits.of(losses, memory_budget)
    what = "a rectangle needs the rows of all losses of one side"
    noticed = at_once(mine, losses, found.keep, limits, what)
    notify([*noticed, *at_once(theirs, others, found.meet, limits, what)])
    return found.value


def plan(graph: Graph, losses: Sequence[Tensor], on_target: OnTarget) -> tuple[list[LostAxis], int]:
    """A walk that computes nothing: Jacobians without numbers, where batch axes are lost, bytes of stacked rows."""
    meter = Meter(NO_LIMITS)
    return walked(graph, losses, on_target, meter, computes=False), meter.peak


def dense_peak(graph: Graph, losses: Sequence[Tensor], mask: Mask | None = None) -> int:
    """Bytes of stacked rows alive at once in a walk (for the losses in `mask`), without computing anything."""
    meter = Meter(NO_LIMITS)
    walked(graph, losses, lambda *_: None, meter, mask, computes=False)
    return meter.peak


def unknown(graph: Graph, losses: Sequence[Tensor]) -> Tensor:
    """A Gramian of NaN, for losses that are not finite."""
    m = sum(loss.numel() for loss in losses)
    return torch.full((m, m), torch.nan, device=losses[0].device, dtype=accumulation_dtype(losses, graph, None))


def accumulation_dtype(losses: Sequence[Tensor], graph: Graph, dtype: torch.dtype | None) -> torch.dtype:
    """float32 at least, float64 where anything is."""
    return wide_dtype([*losses, *graph.targets.values()]) if dtype is None else dtype


def wide_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 where one of these is, else float32."""
    return torch.float64 if {t.dtype for t in tensors} & {torch.float64, torch.complex128} else torch.float32


# -- one walk, or several ---------------------------------------------------------------------------------------------


def _empty(graph: Graph, losses: Sequence[Tensor], kind: type[Total], dtype: torch.dtype | None) -> Total:
    m = sum(loss.numel() for loss in losses)
    return kind(m, losses[0].device, accumulation_dtype(losses, graph, dtype))


def at_once(
    graph: Graph, losses: Sequence[Tensor], on_target: OnTarget, limits: MemoryLimits, what: str
) -> list[LostAxis]:
    """A walk for all losses, which cannot be cut into blocks."""
    try:
        return walked(graph, losses, on_target, Meter(limits))
    except OverBudgetError:
        needed = dense_peak(graph, losses)
        raise BudgetError(
            f"{what} at once, {in_bytes(needed)}, but memory_budget is {in_bytes(limits.rows)}: raise it to at least "
            f"{needed} bytes, or ask for fewer losses at a time"
        ) from None


def _add_all(
    graph: Graph,
    losses: Sequence[Tensor],
    totals: Mapping[Edge, Total],
    limits: MemoryLimits,
    kept: Kept | None = None,
) -> list[LostAxis]:
    """One walk if its stacked rows fit the budget, else several; returns where batch axes were lost."""
    meter = Meter(limits, lambda: dense_peak(graph, losses))
    try:
        return _add_shares(graph, losses, totals, meter, kept=kept)
    except OverBudgetError:
        if kept is not None:
            kept.clear()
        return _in_blocks(graph, losses, totals, limits)


def _add_shares(
    graph: Graph,
    losses: Sequence[Tensor],
    totals: Mapping[Edge, Total],
    meter: Meter,
    mask: Mask | None = None,
    kept: Kept | None = None,
) -> list[LostAxis]:
    """Add each input's share (for the losses in `mask`) to its total."""

    def add(edge: Edge, jacobian: Jacobian) -> None:
        if kept is not None and edge in totals and kept.limit and kept.wants(edge):
            jacobian = jacobian.settled(totals[edge].dtype)
        if edge in totals:
            totals[edge].add_share(jacobian)
        if kept is not None:
            kept.note(edge, jacobian)

    return walked(graph, losses, add, meter, mask, keeps=kept is not None)


def _in_blocks(
    graph: Graph, losses: Sequence[Tensor], totals: Mapping[Edge, Total], limits: MemoryLimits
) -> list[LostAxis]:
    """The totals block by block, with the fewest blocks of losses of which those walked for together fit."""
    first = next(iter(totals.values()))
    blocks, needed = 2, dense_peak(graph, losses)
    while blocks < first.m:
        blocks = min(2 * blocks, first.m)
        visits = first.visits(np.array_split(np.arange(first.m), blocks))
        needed = dense_peak(graph, losses, _mask(first.m, *visits[0]))
        if needed <= limits.rows:
            try:
                return _blockwise(graph, losses, totals, limits, visits)
            except _BlocksOverBudgetError as over:
                needed = over.needed
    raise BudgetError(
        f"the rows of two losses alone need {in_bytes(needed)}, but memory_budget is {in_bytes(limits.rows)}: raise it "
        f"to at least {int(needed)} bytes"
    )


class _BlocksOverBudgetError(Exception):
    """A walk for some blocks of losses would need more than the budget: at least `needed` bytes."""

    def __init__(self, needed: int) -> None:
        super().__init__()
        self.needed = needed


def _mask(m: int, *parts: Owners) -> Mask:
    mask = np.zeros(m, dtype=bool)
    mask[np.concatenate(parts)] = True
    return mask


def _blockwise(
    graph: Graph,
    losses: Sequence[Tensor],
    totals: Mapping[Edge, Total],
    limits: MemoryLimits,
    visits: Sequence[tuple[Owners, ...]],
) -> list[LostAxis]:
    """A walk for each union of blocks, of which each total takes over the part that it gave."""
    noticed: list[LostAxis] = []
    for blocks in visits:
        fresh = {found: found.fresh() for found in totals.values()}
        partial = {edge: fresh[found] for edge, found in totals.items()}
        m = next(iter(fresh)).m
        mask, meter = _mask(m, *blocks), Meter(limits)
        try:
            noticed = _add_shares(graph, losses, partial, meter, mask)
        except OverBudgetError:
            raise _BlocksOverBudgetError(max(meter.peak, dense_peak(graph, losses, mask))) from None
        for found, part in fresh.items():
            for rows, columns in itertools.product(blocks, repeat=2):
                found.paste(part, rows, columns)
    return noticed


# -- what is said ------------------------------------------------------------------------------------------------------


def check_reached(losses: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """Raise the error for an input that no loss reaches."""
    graphs.read(losses, inputs)


def _check_either_reached(inputs: Sequence[Tensor] | None, sides: Sequence[Graph]) -> None:
    given = () if inputs is None or (isinstance(inputs, Selected) and inputs.optional) else inputs
    for place, tensor in enumerate(given):
        reached = [g for g in sides if any(t is tensor and edge[0] in g.edges for edge, t in g.targets.items())]
        if not reached:
            raise InputError(
                f"input {place} (shape {tuple(tensor.shape)}) is reached neither by `losses` nor by `other`: remove it "
                "from `inputs`, or compute the losses from it"
            )
