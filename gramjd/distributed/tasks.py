"""A multi-task step whose task losses are means over the ranks of a group."""

from __future__ import annotations

from typing import Any

import torch

from gramjd.aggregation import UPGrad
from gramjd.backward import UPDATES, GramStep, check_aggregator
from gramjd.distributed.gradients import add_sums, gradients_of
from gramjd.distributed.ranks import Group, Ranks
from gramjd.distributed.side import Side, exchange_of, gramian_over, weights_over
from gramjd.engine import compute
from gramjd.engine.consumers.update import Kept
from gramjd.engine.graph import SINK, WAITS
from gramjd.engine.memory import MemoryLimits
from gramjd.engine.tasks import read_tasks
from gramjd.errors import InputError, graph_errors
from gramjd.kernels.dispatch import chosen
from gramjd.losses import Inputs, Losses, as_budget, as_inputs, as_names, as_tasks
from gramjd.options import as_choice


def group_mtl_backward(
    losses: Losses,
    aggregator: Any,
    group: Group | None,
    *,
    shared: Inputs = None,
    retain_graph: bool = False,
    update: str = "backward",
    memory_budget: int | None = None,
    backend: str | None = None,
) -> GramStep:
    """`mtl_backward` for losses that are means over ranks; see there."""
    ranks = Ranks(group)
    with ranks.together(), chosen(backend), graph_errors():
        as_choice(update, "update", UPDATES)
        aggregator = UPGrad() if aggregator is None else aggregator
        check_aggregator(aggregator)
        found = as_tasks(losses)
        tasks = read_tasks(found, as_inputs(shared, "shared"))
        if SINK in tasks.graph.names.values():
            raise InputError(WAITS)
        limits = MemoryLimits.of(found, as_budget(memory_budget))
        graph = compute.read(found, tasks.joint) if tasks.joint else tasks.graph
        side = Side(found, graph, tasks.joint, True, False)
        kept = Kept(graph, tasks.joint, int(limits.kept)) if update == "reuse" and tasks.joint else None
        exchange = exchange_of(ranks, side, limits, UPDATES.index(update), mean=True)
        G = gramian_over(exchange, side, limits, kept)
        names = as_names(losses)
        weights = weights_over(exchange, side, G, aggregator, names)
        own = gradients_of(side, tasks.own, torch.ones_like(weights) / ranks.size, None, True)
        mine = own | gradients_of(side, tasks.joint, weights / ranks.size, kept, retain_graph)
        add_sums(ranks, [*tasks.own, *tasks.joint], mine, side.device)
    return GramStep(weights, G, names)
