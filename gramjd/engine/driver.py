"""From losses to a Gramian: one walk, or walks for pairs of blocks of losses where dense rows would not fit."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import graph as graphs
from gramjd.engine import hooks
from gramjd.engine.accumulate import Gramian
from gramjd.engine.graph import Graph
from gramjd.engine.rows import Mask, Rows
from gramjd.engine.task import in_graph_task
from gramjd.engine.visit import Loss
from gramjd.engine.walk import Budget, OnTarget, OverBudgetError, Walk, gramian_of, seeds_for
from gramjd.errors import BudgetError, DenseRowsWarning


def compute(
    losses: Sequence[Tensor], inputs: Sequence[Tensor] | None, dtype: torch.dtype | None, memory_budget: int | None
) -> Tensor:
    """The Gramian [m, m] of the losses with respect to the inputs; the graph stays usable."""
    graph = read(losses, inputs)
    m = sum(loss.numel() for loss in losses)
    gramian = Gramian(m, losses[0].device, accumulation_dtype(losses, graph, dtype))
    limit = memory_budget if memory_budget is not None else default_budget(losses[0].device)
    try:
        noticed = gramian_of(graph, losses, gramian, Budget(limit, lambda: dense_peak(graph, losses)))
    except OverBudgetError:
        noticed = _in_blocks(graph, losses, gramian, limit)
    notify(noticed)
    return gramian.finished()


def read(losses: Sequence[Tensor], inputs: Sequence[Tensor] | None) -> Graph:
    """The graph between losses and inputs, with its hooks."""
    graph = graphs.read(losses, inputs)
    graph.hooks = hooks.find(graph)
    return graph


def accumulation_dtype(losses: Sequence[Tensor], graph: Graph, dtype: torch.dtype | None) -> torch.dtype:
    """float32 at least, float64 where anything is."""
    if dtype is not None:
        return dtype
    wide = {t.dtype for t in (*losses, *graph.targets.values())} & {torch.float64, torch.complex128}
    return torch.float64 if wide else torch.float32


def default_budget(device: torch.device) -> int:
    """A quarter of the device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 4
    return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES")) // 4


def _in_blocks(graph: Graph, losses: Sequence[Tensor], gramian: Gramian, limit: float) -> list[Loss]:
    """G block by block, with the fewest blocks of losses of which two fit at a time."""
    blocks, needed = 2, 0
    while blocks < gramian.m:
        blocks = min(2 * blocks, gramian.m)
        parts = np.array_split(np.arange(gramian.m), blocks)
        needed = dense_peak(graph, losses, _mask(gramian.m, parts[0], parts[1]))
        if needed <= limit:
            try:
                return _blockwise(graph, losses, gramian, limit, parts)
            except OverBudgetError:
                continue
    needed = max(needed, dense_peak(graph, losses, _mask(gramian.m, np.arange(min(2, gramian.m)))))
    raise BudgetError(
        f"the rows of two losses alone need {needed / 2**20:.1f} MiB, but memory_budget is "
        f"{limit / 2**20:.1f} MiB: raise it to at least {int(needed)} bytes"
    )


def _mask(m: int, *parts: Rows) -> Mask:
    mask = np.zeros(m, dtype=bool)
    mask[np.concatenate(parts)] = True
    return mask


def _blockwise(
    graph: Graph, losses: Sequence[Tensor], gramian: Gramian, limit: float, parts: Sequence[Rows]
) -> list[Loss]:
    """A walk for the union of two blocks gives their cross terms; diagonal blocks come several times, equally."""
    noticed: list[Loss] = []
    for a, b in itertools.combinations(parts, 2):
        partial = Gramian(gramian.m, gramian.device, gramian.dtype)
        noticed = gramian_of(graph, losses, partial, Budget(limit), _mask(gramian.m, a, b))
        for rows, columns in itertools.product((a, b), repeat=2):
            span = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
            gramian.value[span] = partial.value[span]
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
        warnings.warn(
            f"{operation} {reason}: from there on one dense row a loss is computed, which is exact but slower "
            "(gramjd.explain shows where; register_rule teaches a rule)",
            DenseRowsWarning,
            stacklevel=4,
        )


def plan(
    losses: Sequence[Tensor], inputs: Sequence[Tensor] | None, on_target: OnTarget
) -> tuple[Graph, list[Loss], int]:
    """A walk that computes nothing: what arrives at each input, where batch axes are lost, bytes of stacked rows."""
    graph = read(losses, inputs)
    budget = Budget(float("inf"))
    walk = Walk(graph, on_target, budget, dry=True)
    in_graph_task(lambda: walk.run(seeds_for(losses, dry=True)))
    return graph, walk.dense, budget.peak


def check_reached(losses: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """Raise the error for an input that no loss reaches."""
    graphs.read(losses, inputs)
