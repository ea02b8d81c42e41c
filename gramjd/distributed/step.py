"""A step, and a Gramian, over the losses of all ranks of a group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gramjd.aggregation import Coordinatewise, UPGrad
from gramjd.backward import UPDATES, GramStep, check_aggregator, restoring, weighted_backward
from gramjd.distributed.exchange import Sent
from gramjd.distributed.gradients import add_sums, gradients_of
from gramjd.distributed.ranks import Group, Ranks
from gramjd.distributed.side import exchange_of, gramian_over, in_graph, reduction_of, side_of, weights_over
from gramjd.engine import compute
from gramjd.engine.consumers.update import Kept
from gramjd.engine.memory import MemoryLimits
from gramjd.engine.parameter import Jacobian
from gramjd.errors import InputError, graph_errors
from gramjd.kernels.dispatch import chosen
from gramjd.losses import Inputs, Losses, as_budget, as_dtype, as_inputs, as_names, as_scale
from gramjd.options import as_choice

ACROSS = ("stack", "mean")


def group_backward(
    losses: Losses,
    aggregator: Any,
    group: Group | None,
    *,
    inputs: Inputs = None,
    gramian_inputs: Inputs = None,
    update: str = "backward",
    nonfinite: str = "raise",
    retain_graph: bool = False,
    memory_budget: int | None = None,
    backend: str | None = None,
    scale: float = 1.0,
    across: str = "stack",
) -> GramStep:
    """`gram_backward` over the losses of all ranks, in the order of the ranks, or over their means; see there."""
    ranks = Ranks(group)
    with ranks.together(), chosen(backend), graph_errors():
        as_choice(update, "update", UPDATES)
        as_choice(across, "across", ACROSS)
        scale = as_scale(scale)
        if nonfinite != "raise":
            raise InputError(f"nonfinite is {nonfinite!r}; with a `group` only 'raise' is possible")
        aggregator = UPGrad() if aggregator is None else aggregator
        if isinstance(aggregator, Coordinatewise):
            raise InputError(f"{aggregator!r} works on the columns of J, which no rank has: use a function of G")
        check_aggregator(aggregator)
        side = side_of(losses, inputs if gramian_inputs is None else gramian_inputs)
        reduction = reduction_of(ranks, side, inputs)
        limits = MemoryLimits.of(side.losses or side.parameters[:1], as_budget(memory_budget))
        targets = side.parameters if gramian_inputs is None or inputs is None else in_graph(side, as_inputs(inputs))
        kept = None
        if update == "reuse" and reduction is None and side.mesh is None and side.graph is not None:
            kept = Kept(side.graph, targets, int(limits.kept))
        mean = across == "mean"
        exchange = exchange_of(ranks, side, limits, UPDATES.index(update), reduction, mean=mean)
        G, counts = gramian_over(exchange, side, limits, kept), exchange.counts
        G = G if scale == 1 else G / scale / scale
        # Names are those of one rank's losses, and so of the means.
        names = as_names(losses) if mean else None
        weights = weights_over(exchange, side, G, aggregator, names, scale)
        start = sum(counts[: ranks.rank])
        mine = weights / ranks.size if mean else weights[start : start + side.m]
        if reduction is not None:
            only = None if inputs is None or isinstance(inputs, nn.Module) else targets
            with restoring(reduction.parameters):
                weighted_backward(side.losses, mine * reduction.divisor, only, retain_graph)
        else:
            add_sums(ranks, targets, gradients_of(side, targets, mine, kept, retain_graph), side.device)
    return GramStep(weights, G, names)


def group_gramian(
    losses: Losses,
    group: Group | None,
    inputs: Inputs = None,
    *,
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """`gramian` over the losses of all ranks, [M, M], the same on all of them; see there."""
    ranks = Ranks(group)
    with ranks.together(), chosen(backend), graph_errors():
        side = side_of(losses, inputs)
        limits = MemoryLimits.of(side.losses or side.parameters[:1], as_budget(memory_budget))
        return gramian_over(exchange_of(ranks, side, limits, dtype=as_dtype(dtype)), side, limits)


def exchanged(
    losses: Losses, group: Group | None, inputs: Inputs = None, across: str = "stack"
) -> tuple[int, list[tuple[Tensor, Sent]]]:
    """How many losses G would be of, and what this rank would send for each parameter; nothing is computed."""
    ranks = Ranks(group)
    with ranks.together(), graph_errors():
        side = side_of(losses, inputs)
        if side.mesh is not None:
            raise InputError("what a tensor-parallel model exchanges is not planned: leave out `group`")
        found: dict[int, Jacobian] = {}
        graph = side.graph
        if graph is not None:
            compute.plan(graph, side.losses, lambda edge, jacobian: found.update({id(graph.targets[edge]): jacobian}))
        limits = MemoryLimits.of(side.losses or side.parameters[:1], None)
        mean = as_choice(across, "across", ACROSS) == "mean"
        exchange = exchange_of(ranks, side, limits, reduction=reduction_of(ranks, side, inputs), mean=mean)
        return len(exchange.half), [(side.parameters[sent.place], sent) for sent in exchange.plan(found)]
