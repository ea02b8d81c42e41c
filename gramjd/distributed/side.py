"""What each rank brings to a step, and what all of them make of it: the losses per rank, and one Gramian."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gramjd.backward import weights_of
from gramjd.distributed.exchange import Exchange
from gramjd.distributed.ranks import Ranks
from gramjd.engine import compute, dtensor
from gramjd.engine.consumers.update import Kept
from gramjd.engine.graph import Edge, Graph, Selected
from gramjd.engine.memory import MemoryLimits
from gramjd.engine.parameter import Jacobian
from gramjd.engine.sharding import Sharded
from gramjd.errors import InputError, RankError
from gramjd.losses import Inputs, Losses, as_given, as_inputs, as_losses

_WIDTHS = (torch.float32, torch.float64)


class Side(NamedTuple):
    """What this rank brings: its losses (maybe none), their graph, and the parameters in the order of all ranks.

    `follows`: that order, or that of collectives within the model, is the graph's, which has to be the same on
    all ranks then. `asked`: each parameter was asked for by itself, so that some loss has to reach it.
    """

    losses: list[Tensor]
    graph: Graph | None
    parameters: list[Tensor]
    follows: bool
    asked: bool

    @property
    def sharded(self) -> Sharded | None:
        """What of the model is sharded by `fully_shard`."""
        return None if self.graph is None else self.graph.sharded

    @property
    def mesh(self) -> Any:
        """What its tensors are spread over within this rank's part of the data."""
        return None if self.graph is None else self.graph.mesh

    @property
    def m(self) -> int:
        """Losses of this rank."""
        return sum(loss.numel() for loss in self.losses)

    def check_reached(self, exchange: Exchange) -> None:
        """Raise RankError, on all ranks, for a parameter that was asked for and that no loss of any rank reaches."""
        missing = [p for n, p in enumerate(self.parameters) if n not in exchange.reached]
        if self.asked and missing:
            raise RankError(
                f"an input (shape {tuple(missing[0].shape)}) is not reached by any loss of any rank: remove it from "
                "`inputs`, or compute the losses from it (raised on all ranks; `.grad` was left as it was)"
            )

    @property
    def met(self) -> list[int]:
        """The places of the parameters in the order in which a walk completes them; without a graph the last first."""
        graph = self.graph
        if graph is None:
            return list(range(len(self.parameters)))[::-1]
        place = {id(p): n for n, p in enumerate(self.parameters)}
        leaves = [graph.targets.get((node, 0)) for node in graph.visited]
        found = [place[id(leaf)] for leaf in leaves if leaf is not None and id(leaf) in place]
        return [*found, *sorted(set(range(len(place))) - set(found))]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return (self.losses or self.parameters)[0].device


class Reduction(NamedTuple):
    """Training that sums gradients over ranks in its own backward pass, and divides them by a number."""

    kind: str
    divisor: float
    parameters: list[Tensor]


KINDS = ("DistributedDataParallel", "FSDP")


def side_of(losses: Losses, inputs: Inputs) -> Side:
    """The losses of this rank with their graph; without losses the inputs say what the parameters are."""
    given = as_given(losses)
    parts = [given] if isinstance(given, Tensor) else list(given)
    found = as_losses(given) if any(t.numel() for t in parts) else []
    targets = as_inputs(inputs)
    if not found:
        if targets is None:
            raise InputError("this rank has no losses, so that its parameters are not known: pass `inputs`")
        return Side([], None, list(targets), False, not targets.optional)
    if targets is None:
        graph = compute.read(found, None, spread=True)
        return Side(found, graph, list(graph.targets.values()), True, False)
    # What this rank's losses do not reach, another's may.
    optional = Selected(targets)
    optional.optional = True
    graph = compute.read(found, optional, spread=True)
    side = Side(found, graph, list(targets), False, not targets.optional)
    if side.sharded is None:
        return side
    # Parameters are gathered in the order of the graph.
    return side._replace(parameters=in_graph(side, targets), follows=True)


def in_graph(side: Side, inputs: list[Tensor] | None) -> list[Tensor]:
    """Inputs that were given, as they stand in the graph."""
    assert inputs is not None, "inputs were given"
    return inputs if side.sharded is None else side.sharded.leaves_for(inputs)


def reduction_of(ranks: Ranks, side: Side, inputs: Inputs) -> Reduction | None:
    """Who sums the gradients of this rank, where it is not gramjd."""
    if isinstance(inputs, DistributedDataParallel):
        return Reduction(KINDS[0], ranks.size, list(inputs.parameters()))
    sharded = side.sharded if side.losses else Sharded.of(())
    if sharded is None or not (side.losses or sharded.holds(side.parameters)):
        return None
    if side.losses:
        sharded.check_ranks(torch.distributed.get_process_group_ranks(ranks.group))
        sharded.before = ranks.meet
    return Reduction(KINDS[1], sharded.divisor(), [*side.parameters, *sharded.shards.values()])


def exchange_of(
    ranks: Ranks,
    side: Side,
    limits: MemoryLimits,
    update: int = 0,
    reduction: Reduction | None = None,
    dtype: torch.dtype | None = None,
    mean: bool = False,
) -> Exchange:
    """What the ranks will exchange, once they mean the same step. Raises RankError on all of them if they do not."""
    if side.graph is not None:
        dtype = compute.accumulation_dtype(side.losses, side.graph, dtype)
    dtype = torch.float32 if dtype is None else dtype
    order = side.met
    said = ranks.meet(
        side.m,
        len(side.parameters),
        _check_sum(side.parameters),
        _WIDTHS.index(dtype),
        2 * mean + update,
        0 if reduction is None else 1 + KINDS.index(reduction.kind),
        # The same graph does not suffice: it may use the parameters in another order.
        0 if side.graph is None else zlib.crc32(repr((side.graph.structure.check_sum, order)).encode()),
        side.follows,
        min(int(limits.rows), sys.maxsize),
    )
    counts, kind = [count for count, *_ in said], max(row[5] for row in said)
    if kind and any(counts) and not all(counts):
        raise RankError(f"losses per rank: {counts}; {KINDS[kind - 1]} needs a backward pass on every rank")
    _agree(said)
    if not any(counts):
        raise RankError("no rank has a loss: give at least one")
    if mean and len(set(counts)) > 1:
        raise RankError(f"losses per rank: {counts}; a mean over ranks needs the same number on each")
    wide = _WIDTHS[max(row[3] for row in said)]
    if len({row[6] for row in said}) > 1:
        order = list(range(len(side.parameters)))[::-1]
    return Exchange(ranks, side.parameters, counts, side.device, wide, mean, min(row[8] for row in said), order)


def gramian_over(exchange: Exchange, side: Side, limits: MemoryLimits, kept: Kept | None = None) -> Tensor:
    """G [M, M] over all ranks, and in `kept` what an update can be made of."""
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
    if side.mesh is not None:
        G = dtensor.summed(G, side.mesh)
    side.check_reached(exchange)
    return G


def _check_sum(parameters: Sequence[Tensor]) -> int:
    return zlib.crc32(repr([(tuple(p.shape), p.dtype) for p in parameters]).encode())


def _agree(said: Sequence[Sequence[int]]) -> None:
    """Raise on all ranks where they do not mean the same step."""
    kinds = {
        "the number of parameters": 1,
        "the shapes and dtypes of parameters": 2,
        "`update` or `across`": 4,
        "a wrapper": 5,
        **({"the graph of the losses": 6} if any(row[7] for row in said) else {}),
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


def weights_over(
    exchange: Exchange,
    side: Side,
    G: Tensor,
    aggregator: Any,
    names: Sequence[str] | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The aggregator's weights for G, the same bits on all ranks, who meet after it was called."""
    ranks = exchange.ranks
    losses = [loss.detach().reshape(-1).to(G.dtype) / scale for loss in side.losses]
    mine = torch.cat(losses) if losses else torch.empty(0, dtype=G.dtype, device=side.device)
    values = ranks.vectors(mine, exchange.counts)
    values = values.view(ranks.size, -1).mean(0) if exchange.mean else values
    weights = weights_of(aggregator, G, values, names=names)
    ranks.meet()
    weights = ranks.of_first(weights)
    return weights if side.mesh is None else dtensor.alike(weights, side.mesh)
