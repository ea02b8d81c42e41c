"""From losses to a Gramian: one walk, or walks for pairs of blocks of losses where dense rows would not fit."""

from __future__ import annotations

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
    noticed: list[Loss] = []

    def run() -> None:
        try:
            noticed.extend(gramian_of(graph, losses, gramian, Budget(limit)))
        except OverBudgetError:
            gramian.value.zero_()
            noticed.extend(_in_blocks(graph, losses, gramian, limit))

    in_graph_task(run)
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
    """G block by block: a walk for the union of two blocks of losses gives their cross terms."""
    m = gramian.m
    blocks = _block_count(graph, losses, m, limit)
    parts = np.array_split(np.arange(m), blocks)
    noticed: list[Loss] = []
    pairs = [(a, b) for a in range(blocks) for b in range(a + 1, blocks)]
    for a, b in pairs:
        mask = np.zeros(m, dtype=bool)
        mask[parts[a]] = mask[parts[b]] = True
        partial = Gramian(m, gramian.device, gramian.dtype)
        noticed = gramian_of(graph, losses, partial, Budget(limit), mask)
        _keep(gramian.value, partial.value, parts[a], parts[b])
    return noticed


def _keep(total: Tensor, partial: Tensor, a: np.ndarray, b: np.ndarray) -> None:
    """Take over the blocks of one walk; a diagonal block is computed several times, equally."""
    for rows in (a, b):
        for columns in (a, b):
            span = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
            total[span] = partial[span]


def _block_count(graph: Graph, losses: Sequence[Tensor], m: int, limit: float) -> int:
    """The fewest blocks of which two fit, found by walks that compute nothing."""
    blocks = 2
    while True:
        blocks = min(2 * blocks, m)
        size = -(-m // blocks)
        mask = np.zeros(m, dtype=bool)
        mask[: 2 * size] = True
        needed = dense_peak(graph, losses, mask)
        if needed <= limit:
            return blocks
        if blocks == m:
            raise BudgetError(
                f"the rows of two losses alone need {needed / 2**20:.1f} MiB, but memory_budget is "
                f"{limit / 2**20:.1f} MiB: raise it to at least {int(needed)} bytes"
            )


def dense_peak(graph: Graph, losses: Sequence[Tensor], mask: np.ndarray | None = None) -> int:
    """Bytes of stacked rows alive at once in a walk, without computing anything."""
    budget = Budget(float("inf"))
    Walk(graph, lambda *_: None, budget, dry=True).run(seeds_for(losses, mask, dry=True))
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
