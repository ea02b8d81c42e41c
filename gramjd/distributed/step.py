"""A step, and a Gramian, over the losses of all ranks of a group."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gramjd.aggregation import Coordinatewise, UPGrad
from gramjd.backward import UPDATES, GramStep, check_aggregator, restoring, weighted_backward, weights_of
from gramjd.distributed.exchange import Exchange
from gramjd.distributed.gradients import summed
from gramjd.distributed.ranks import Group, Ranks
from gramjd.engine import compute
from gramjd.engine.autograd import add_to_grad, plainly, release
from gramjd.engine.consumers.update import Kept
from gramjd.engine.graph import Edge, Graph, Selected
from gramjd.engine.hooks import on_accumulation
from gramjd.engine.memory import MemoryLimits
from gramjd.engine.parameter import Jacobian
from gramjd.errors import InputError, RankError, graph_errors
from gramjd.kernels.dispatch import chosen
from gramjd.losses import Inputs, Losses, as_budget, as_dtype, as_given, as_inputs, as_losses, as_names, as_scale
from gramjd.options import as_choice

_WIDTHS = (torch.float32, torch.float64)
ACROSS = ("stack", "mean")


class Side(NamedTuple):
    """What this rank brings: its losses (maybe none), their graph, and the parameters in the order of all ranks.

    `structure`: a check sum of what decides that order; 0 where it was given. `asked`: each parameter was asked for by
    itself, so that some loss has to reach it.
    """

    losses: list[Tensor]
    graph: Graph | None
    parameters: list[Tensor]
    structure: int
    asked: bool

    @property
    def m(self) -> int:
        """Losses of this rank."""
        return sum(loss.numel() for loss in self.losses)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return (self.losses or self.parameters)[0].device


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
    wrapper = inputs if isinstance(inputs, DistributedDataParallel) else None
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
        side = _side(losses, inputs if gramian_inputs is None else gramian_inputs)
        limits = MemoryLimits.of(side.losses or side.parameters[:1], as_budget(memory_budget))
        targets = side.parameters if gramian_inputs is None else as_inputs(inputs)
        targets = side.parameters if targets is None else targets
        kept = None
        if update == "reuse" and wrapper is None and side.graph is not None:
            kept = Kept(side.graph, targets, int(limits.kept))
        mean = across == "mean"
        counts, G = _gramian(ranks, side, limits, kept, UPDATES.index(update), wrapper, mean=mean)
        G = G if scale == 1 else G / scale / scale
        values = ranks.vectors(_values(side, G.dtype) / scale, counts)
        # Names are those of one rank's losses, and so of the means.
        names = as_names(losses) if mean else None
        weights = weights_of(aggregator, G, values.view(ranks.size, -1).mean(0) if mean else values, names=names)
        ranks.meet()
        weights = ranks.of_first(weights)
        start = sum(counts[: ranks.rank])
        mine = weights / ranks.size if mean else weights[start : start + side.m]
        if wrapper is not None:
            _through(wrapper, ranks, side, mine, retain_graph)
        else:
            _updates(ranks, side, targets, mine, kept, retain_graph)
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
        side = _side(losses, inputs)
        limits = MemoryLimits.of(side.losses or side.parameters[:1], as_budget(memory_budget))
        _, G = _gramian(ranks, side, limits, dtype=as_dtype(dtype))
    return G


# -- the parts of a step ----------------------------------------------------------------------------------------------


def _side(losses: Losses, inputs: Inputs) -> Side:
    given = as_given(losses)
    parts = [given] if isinstance(given, Tensor) else list(given)
    found = as_losses(given) if any(t.numel() for t in parts) else []
    targets = as_inputs(inputs)
    if not found:
        if targets is None:
            raise InputError("this rank has no losses, so that its parameters are not known: pass `inputs`")
        return Side([], None, list(targets), 0, not targets.optional)
    if targets is None:
        graph = compute.read(found, None)
        return Side(found, graph, list(graph.targets.values()), _structure(graph), False)
    # What this rank's losses do not reach, another's may.
    optional = Selected(targets)
    optional.optional = True
    return Side(found, compute.read(found, optional), list(targets), 0, not targets.optional)


def _structure(graph: Graph) -> int:
    """A check sum of the nodes and edges of a graph: where it is the same, so is the order of the leaves."""
    number = {node: n for n, node in enumerate(graph.edges)}
    nodes = [(graph.names[node], [(number.get(child), nr) for child, nr in graph.edges[node]]) for node in number]
    return zlib.crc32(repr(nodes).encode())


def _gramian(
    ranks: Ranks,
    side: Side,
    limits: MemoryLimits,
    kept: Kept | None = None,
    update: int = 0,
    wrapper: DistributedDataParallel | None = None,
    dtype: torch.dtype | None = None,
    mean: bool = False,
) -> tuple[list[int], Tensor]:
    """Losses per rank, and G [M, M]."""
    if side.graph is not None:
        dtype = compute.accumulation_dtype(side.losses, side.graph, dtype)
    dtype = torch.float32 if dtype is None else dtype
    said = ranks.meet(
        side.m,
        len(side.parameters),
        _check_sum(side.parameters),
        _WIDTHS.index(dtype),
        2 * mean + update,
        wrapper is not None,
        side.structure,
    )
    _agree(said)
    counts = [count for count, *_ in said]
    if not any(counts):
        raise RankError("no rank has a loss: give at least one")
    if wrapper is not None and not all(counts):
        raise RankError(f"losses per rank: {counts}; DistributedDataParallel needs a backward pass on every rank")
    if mean and len(set(counts)) > 1:
        raise RankError(f"losses per rank: {counts}; a mean over ranks needs the same number on each")
    wide = _WIDTHS[max(row[3] for row in said)]
    exchange = Exchange(ranks, side.parameters, counts, side.device, wide, mean)
    graph = side.graph
    if graph is not None:
        wanted = {id(p) for p in side.parameters}

        def on_target(edge: Edge, jacobian: Jacobian) -> None:
            if id(graph.targets[edge]) in wanted:
                exchange.note(graph.targets[edge], jacobian)
            if kept is not None:
                kept.note(edge, jacobian)

        what = "a Gramian over ranks needs the rows of all losses of a rank"
        compute.notify(compute.at_once(graph, side.losses, on_target, limits, what))
    G = exchange.finish()
    missing = [p for n, p in enumerate(side.parameters) if n not in exchange.reached]
    if side.asked and missing:
        raise RankError(
            f"an input (shape {tuple(missing[0].shape)}) is not reached by any loss of any rank: remove it from "
            "`inputs`, or compute the losses from it (raised on all ranks; `.grad` was left as it was)"
        )
    return counts, G


def _check_sum(parameters: Sequence[Tensor]) -> int:
    return zlib.crc32(repr([(tuple(p.shape), p.dtype) for p in parameters]).encode())


def _agree(said: Sequence[Sequence[int]]) -> None:
    """Raise on all ranks where they do not mean the same step."""
    kinds = {
        "the number of parameters": 1,
        "the shapes and dtypes of parameters": 2,
        "`update` or `across`": 4,
        "a wrapper": 5,
        "the graph of the losses": 6,
    }
    for what, place in kinds.items():
        values = [row[place] for row in said]
        if len(set(values)) > 1:
            first = values.index(next(v for v in values if v != values[0]))
            raise RankError(
                f"the ranks disagree about {what}: rank 0 has {values[0]}, rank {first} has {values[first]}; pass the "
                "same `inputs` on all ranks, such as the module, which says what the parameters are and in which order "
                "(raised on all ranks; `.grad` was left as it was)"
            )


def _values(side: Side, dtype: torch.dtype) -> Tensor:
    values = [loss.detach().reshape(-1).to(dtype) for loss in side.losses]
    return torch.cat(values) if values else torch.empty(0, dtype=dtype, device=side.device)


def _through(wrapper: DistributedDataParallel, ranks: Ranks, side: Side, weights: Tensor, retain_graph: bool) -> None:
    """A backward pass whose gradients the wrapper averages: times the number of ranks they are the sum."""
    with restoring(list(wrapper.parameters())):
        weighted_backward(side.losses, weights * ranks.size, None, retain_graph)


def _updates(
    ranks: Ranks, side: Side, targets: Sequence[Tensor], weights: Tensor, kept: Kept | None, retain_graph: bool
) -> None:
    """Add the sum over ranks of `J_r^T w_r` to `.grad`."""
    graph = side.graph
    found: dict[int, Tensor] = {}
    if graph is not None:
        if on_accumulation(graph):
            raise InputError(
                "a parameter has a hook on the accumulation of its gradient, which would see the sum of one rank: "
                "remove the hook, or pass a DistributedDataParallel wrapper as `inputs`"
            )
        if kept is not None:
            with plainly():
                found = {id(leaf): gradient for leaf, gradient in kept.gradients(weights)}
        reached = {id(leaf) for leaf in graph.leaves.values()}
        rest = [t for t in targets if id(t) not in found and (id(t) in reached or not t.is_leaf)]
        if rest:
            parts = weights.split([loss.numel() for loss in side.losses])
            given = [w.to(loss.dtype).view(loss.shape) for w, loss in zip(parts, side.losses, strict=True)]
            more = torch.autograd.grad(side.losses, rest, given, retain_graph=retain_graph, allow_unused=True)
            found |= {id(t): g for t, g in zip(rest, more, strict=True) if g is not None}
        elif not retain_graph:
            release(graph, side.losses)
    ranks.meet()
    flags = torch.tensor([int(id(t) in found) for t in targets], device=side.device)
    somewhere = ranks.summed(flags).tolist()
    used = [t for t, count in zip(targets, somewhere, strict=True) if count]
    total = summed(ranks, used, [found.get(id(t)) for t in used])
    add_to_grad(zip(used, total, strict=True))
