"""From losses to a Gramian: one walk, or walks for pairs of blocks of losses where dense rows would not fit."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import graph as graphs
from gramjd.engine import hooks
from gramjd.engine.autograd import in_graph_task
from gramjd.engine.consumers.columns import Columns, Combine
from gramjd.engine.consumers.gramian import Gramian, Sum
from gramjd.engine.consumers.update import Kept
from gramjd.engine.graph import Edge, Graph
from gramjd.engine.layout import Mask, Rows
from gramjd.engine.node import Loss
from gramjd.engine.remember import add_shares_again
from gramjd.engine.walk import Budget, OnTarget, OverBudgetError, Walk, add_shares, seeds_for
from gramjd.errors import BudgetError, DenseRowsWarning, InputsWarning, in_bytes, warn


def total(
    losses: Sequence[Tensor],
    inputs: Sequence[Tensor] | None,
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    kind: type[Sum] = Gramian,
) -> Tensor:
    """The Gramian [m, m] (or another kind of sum) of the losses with respect to the inputs; the graph stays usable."""
    return total_of(read(losses, inputs), losses, dtype, memory_budget, kind)


def total_of(
    graph: Graph,
    losses: Sequence[Tensor],
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    kind: type[Sum] = Gramian,
) -> Tensor:
    """The same for a graph that was read."""
    name_others(graph)
    total = _empty(graph, losses, kind, dtype)
    notify(_add_all(graph, losses, dict.fromkeys(graph.targets, total), memory_budget))
    return total.finished()


def shares(
    losses: Sequence[Tensor],
    inputs: Sequence[Tensor] | None,
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    kind: type[Sum] = Gramian,
) -> list[tuple[Tensor, Tensor]]:
    """Each input with its own share of the sum."""
    graph = read(losses, inputs)
    name_others(graph)
    totals = {edge: _empty(graph, losses, kind, dtype) for edge in graph.targets}
    notify(_add_all(graph, losses, totals, memory_budget))
    return [(tensor, totals[edge].finished()) for edge, tensor in graph.targets.items()]


def gramian_and_rows(
    graph: Graph, losses: Sequence[Tensor], targets: Sequence[Tensor] | None, memory_budget: int | None
) -> tuple[Tensor, Kept]:
    """The Gramian with respect to the inputs of a graph, and the rows of `targets` as far as they can be kept."""
    total = _empty(graph, losses, Gramian, None)
    kept = Kept(graph, targets, budget_for(losses, memory_budget))
    name_others(graph)
    counted = [edge for edge in graph.targets if edge not in graph.others]
    notify(_add_all(graph, losses, dict.fromkeys(counted, total), memory_budget, kept))
    return total.finished(), kept


def combine_columns(
    losses: Sequence[Tensor], inputs: Sequence[Tensor] | None, combine: Combine, memory_budget: int | None
) -> Columns:
    """`combine` ([m, d] to [d]) applied to the columns of J, input by input."""
    graph = read(losses, inputs, everything=True)
    columns = Columns(graph, sum(loss.numel() for loss in losses), combine)
    limit = budget_for(losses, memory_budget)
    walk = Walk(graph, columns.note, Budget(limit, temporaries=memory_budget))
    try:
        in_graph_task(lambda: walk.run(seeds_for(losses)))
    except OverBudgetError:
        needed = dense_peak(graph, losses)
        raise BudgetError(
            f"an aggregator that needs J needs the rows of all losses at once, {in_bytes(needed)}, but "
            f"memory_budget is {in_bytes(limit)}: raise it to at least {needed} bytes"
        ) from None
    notify(walk.dense)
    return columns


def unknown(graph: Graph, losses: Sequence[Tensor]) -> Tensor:
    """A Gramian of NaN, for losses that are not finite."""
    m = sum(loss.numel() for loss in losses)
    return torch.full((m, m), torch.nan, device=losses[0].device, dtype=accumulation_dtype(losses, graph, None))


def _empty(graph: Graph, losses: Sequence[Tensor], kind: type[Sum], dtype: torch.dtype | None) -> Sum:
    m = sum(loss.numel() for loss in losses)
    return kind(m, losses[0].device, accumulation_dtype(losses, graph, dtype))


def _add_all(
    graph: Graph,
    losses: Sequence[Tensor],
    totals: Mapping[Edge, Sum],
    memory_budget: int | None,
    kept: Kept | None = None,
) -> list[Loss]:
    """One walk if its stacked rows fit the budget, else several; returns where batch axes were lost."""
    limit = budget_for(losses, memory_budget)
    try:
        budget = Budget(limit, lambda: dense_peak(graph, losses), memory_budget)
        return add_shares_again(graph, losses, totals, budget, kept)
    except OverBudgetError:
        if kept is not None:
            kept.clear()
        return _in_blocks(graph, losses, totals, limit, memory_budget)


def read(
    losses: Sequence[Tensor], inputs: Sequence[Tensor] | None, missing_ok: bool = False, everything: bool = False
) -> Graph:
    """The graph between losses and inputs, with its hooks.

    `everything`: where no inputs are named, leaves that are no parameters are targets as well.
    """
    graph = graphs.read(losses, inputs, missing_ok)
    if everything:
        graph.targets |= graph.others
    graph.hooks = hooks.find(graph)
    return graph


def accumulation_dtype(losses: Sequence[Tensor], graph: Graph, dtype: torch.dtype | None) -> torch.dtype:
    """float32 at least, float64 where anything is."""
    if dtype is not None:
        return dtype
    wide = {t.dtype for t in (*losses, *graph.targets.values())} & {torch.float64, torch.complex128}
    return torch.float64 if wide else torch.float32


def budget_for(losses: Sequence[Tensor], memory_budget: int | None) -> int:
    """What was asked for, or a quarter of the memory of the losses' device."""
    if memory_budget is not None:
        return memory_budget
    device = losses[0].device
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 4
    return _main_memory() // 4


@cache
def _main_memory() -> int:
    return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))


def _in_blocks(
    graph: Graph, losses: Sequence[Tensor], totals: Mapping[Edge, Sum], limit: float, memory_budget: int | None
) -> list[Loss]:
    """The sums block by block, with the fewest blocks of losses of which those walked for together fit."""
    total = next(iter(totals.values()))
    blocks, needed = 2, dense_peak(graph, losses)
    while blocks < total.m:
        blocks = min(2 * blocks, total.m)
        visits = total.visits(np.array_split(np.arange(total.m), blocks))
        needed = dense_peak(graph, losses, _mask(total.m, *visits[0]))
        if needed <= limit:
            try:
                return _blockwise(graph, losses, totals, Budget(limit, temporaries=memory_budget), visits)
            except _BlocksOverBudgetError as over:
                needed = over.needed
    raise BudgetError(
        f"the rows of two losses alone need {in_bytes(needed)}, but memory_budget is {in_bytes(limit)}: raise it to at "
        f"least {int(needed)} bytes"
    )


class _BlocksOverBudgetError(Exception):
    """A walk for some blocks of losses would need more than the budget: at least `needed` bytes."""

    def __init__(self, needed: int) -> None:
        super().__init__()
        self.needed = needed


def _mask(m: int, *parts: Rows) -> Mask:
    mask = np.zeros(m, dtype=bool)
    mask[np.concatenate(parts)] = True
    return mask


def _blockwise(
    graph: Graph,
    losses: Sequence[Tensor],
    totals: Mapping[Edge, Sum],
    budget: Budget,
    visits: Sequence[tuple[Rows, ...]],
) -> list[Loss]:
    """A walk for each union of blocks, of which each sum takes over the part that it gave."""
    noticed: list[Loss] = []
    for blocks in visits:
        fresh = {total: total.fresh() for total in totals.values()}
        partial = {edge: fresh[total] for edge, total in totals.items()}
        m = next(iter(fresh)).m
        mask, mine = _mask(m, *blocks), replace(budget)
        try:
            noticed = add_shares(graph, losses, partial, mine, mask)
        except OverBudgetError:
            raise _BlocksOverBudgetError(max(mine.peak, dense_peak(graph, losses, mask))) from None
        for total, part in fresh.items():
            for rows, columns in itertools.product(blocks, repeat=2):
                total.paste(part, rows, columns)
    return noticed


def dense_peak(graph: Graph, losses: Sequence[Tensor], mask: Mask | None = None) -> int:
    """Bytes of stacked rows alive at once in a walk, without computing anything."""
    budget = Budget(float("inf"))
    walk = Walk(graph, lambda *_: None, budget, dry=True)
    in_graph_task(lambda: walk.run(seeds_for(losses, mask, dry=True)))
    return budget.peak


def notify(noticed: Sequence[Loss]) -> None:
    """One notice an operation that made rows dense; Python shows a repeated one once."""
    for operation, reason in dict.fromkeys((loss.operation, loss.reason) for loss in noticed):
        warn(
            f"{operation} {reason}: from there on one dense row per loss is computed, which is exact but slower "
            "(gramjd.explain shows where; register_rule teaches a rule)",
            DenseRowsWarning,
        )


def name_others(graph: Graph) -> None:
    """Warn of leaves that are left out of the Gramian because they are no parameters."""
    if graph.others:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in list(graph.others.values())[:4])
        warn(
            f"the Gramian is built from the {len(graph.targets.keys() - graph.others.keys())} parameters that the "
            f"losses reach, and not from {len(graph.others)} other leaves that require grad (shapes {shapes}): pass "
            "`inputs`, such as the module, to say what is meant",
            InputsWarning,
        )


def plan(graph: Graph, losses: Sequence[Tensor], on_target: OnTarget) -> tuple[list[Loss], int]:
    """A walk that computes nothing: what arrives at each input, where batch axes are lost, bytes of stacked rows."""
    budget = Budget(float("inf"))
    walk = Walk(graph, on_target, budget, dry=True)
    in_graph_task(lambda: walk.run(seeds_for(losses, dry=True)))
    return walk.dense, budget.peak


def check_reached(losses: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """Raise the error for an input that no loss reaches."""
    graphs.read(losses, inputs)
