"""The walk: every node once, in reverse order of the forward pass, messages dropped as soon as they are used."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import rules
from gramjd.engine._torch import sequence_number
from gramjd.engine.autograd import in_graph_task
from gramjd.engine.consumers.gramian import Sum
from gramjd.engine.cotangent import Cotangent, added, appended, materialised, unite
from gramjd.engine.factor import Factor
from gramjd.engine.graph import LEAF, Ancestry, Edge, Graph, Node, edge_of, read
from gramjd.engine.hooks import Hooks
from gramjd.engine.layout import Mask, Piece, Rows, canonical, placed
from gramjd.engine.node import Ledger, Loss, Message, NodeView, UnsavedError
from gramjd.engine.parameter import settle
from gramjd.errors import GraphError
from gramjd.kernels.cost import slabs_within

OnTarget = Callable[[Edge, list[Cotangent], list[Factor]], None]


class OverBudgetError(Exception):
    """Stacked rows would take more than the budget; the caller walks for fewer losses at a time."""


@dataclass
class Budget:
    """Bytes of stacked rows that may be alive; `peak` is what was asked for.

    `foresee` tells the peak of the whole walk. It is asked once a part of the limit is reached, so that a walk that
    cannot end is given up before much is allocated, and one with few stacked rows is not planned at all.
    `temporaries` are bytes that the largest one of a product may take; None for a tenth of what a plain step needs.
    """

    limit: float
    foresee: Callable[[], int] | None = None
    temporaries: float | None = None
    alive: int = 0
    peak: int = 0

    def charge(self, nbytes: int) -> None:
        """Ask for `nbytes` more; refuse before they are allocated."""
        self.peak = max(self.peak, self.alive + nbytes)
        if self.alive + nbytes > self.limit:
            raise OverBudgetError
        if self.foresee is not None and self.alive + nbytes > self.limit / 8:
            foresee, self.foresee = self.foresee, None
            if foresee() > self.limit:
                raise OverBudgetError


@dataclass
class Walk:
    """One pass over a graph. `on_target` receives what arrives at each input, once it is complete.

    `keeps`: it may refer to that later, so that nothing it received is written over.
    """

    graph: Graph
    on_target: OnTarget
    budget: Budget
    dry: bool = False
    dense: list[Loss] = field(default_factory=list)
    keeps: bool = True

    def run(self, seeds: Sequence[Cotangent | None]) -> None:
        """Start from one cotangent a loss tensor (None: not asked for)."""
        if self.budget.temporaries is None:
            self.budget.temporaries = plain_bytes(self.graph) / 10
        itemsize = max((t.dtype.itemsize for t in self.graph.targets.values()), default=4)
        nested = partial(_nested, self.budget, self.dense, self.dry)
        self._ledger = Ledger(self.dry, self.budget.charge, nested, self._settle, self.dense)
        try:
            with slabs_within(self.budget.temporaries, itemsize):
                self._run(seeds)
        finally:
            del self._ledger  # which refers to this walk

    def _run(self, seeds: Sequence[Cotangent | None]) -> None:
        self._waiting = dict(self.graph.arrivals)
        self._inbox: dict[Node, dict[int, list[Message]]] = {}
        self._ancestry = Ancestry(self.graph, rules.ISOMETRIES)
        self._settled: set[tuple[Node, int]] = set()
        ready: list[tuple[int, int, Node]] = []
        ticket = itertools.count()

        def push(node: Node) -> None:
            order = -1 << 62 if self.graph.names[node] == LEAF else -sequence_number(node)
            heapq.heappush(ready, (order, next(ticket), node))

        for (node, nr), seed in zip(self.graph.roots, seeds, strict=True):
            if seed is not None and node in self.graph.wanted:
                self._deliver(node, nr, seed)
        for node in dict.fromkeys(node for node, _ in self.graph.roots):
            if not self._waiting.get(node):
                push(node)
        while ready:
            _, _, node = heapq.heappop(ready)
            self._visit(node)
            for place, (child, _) in enumerate(self.graph.edges[node]):
                if child is not None and (node, place) not in self._settled and self._is_complete(child):
                    push(child)

    def _is_complete(self, node: Node) -> bool:
        """Count an edge to a node as done: whether it was the last one."""
        self._waiting[node] -= 1
        return not self._waiting[node]

    def _settle(self, visit: NodeView, place: int) -> bool:
        """Let a parameter behind an edge take what was sent there: whether that was all, and nobody keeps it."""
        if not visit.wants(place):
            return True
        if not visit.parametric(place):
            return False
        target = visit.edges[place]
        assert target is not None, "wanted above"
        self._deliver_all(target, visit.taken(place))
        self._settled.add((visit.node, place))
        ready, complete = [target[0]], True
        while ready:
            node = ready.pop()
            complete = self._is_complete(node)
            if complete:
                self._visit(node)
                ready += [child for child, _ in self.graph.children[node]]
        return complete and not self.keeps

    # -- messages ----------------------------------------------------------------------------------------------------

    def _deliver_all(self, edge: Edge, messages: Sequence[Message]) -> None:
        for message in messages:
            self._deliver(*edge, message)

    def _deliver(self, node: Node, nr: int, message: Message) -> None:
        queue = self._inbox.setdefault(node, {}).setdefault(nr, [])
        if isinstance(message, Cotangent):
            for n, other in enumerate(queue):
                if isinstance(other, Factor):
                    continue
                if other.layout.key == message.layout.key:
                    queue[n] = added(other, message)
                    return
                both = appended(other, message, self._waiting.get(node, 0), self.budget.charge)
                if both is not None:
                    self.budget.alive += _stacked_bytes(both) - _stacked_bytes(other)
                    queue[n] = both
                    return
            self.budget.alive += _stacked_bytes(message)
        queue.append(message)

    def _visit(self, node: Node) -> None:
        inbox = self._inbox.pop(node, None)
        if not inbox:
            return
        graph, held = self.graph, 0
        for nr, queue in inbox.items():
            held += sum(_stacked_bytes(m) for m in queue if isinstance(m, Cotangent))
            edge = (node, nr)
            if edge in graph.hooks.edges:
                inbox[nr] = queue = list(self._hooked(node, nr, queue))
            if edge in graph.targets:
                for message in queue:
                    if isinstance(message, Cotangent):
                        message.owned = False  # rows that are asked for may be kept
                self.on_target(
                    edge,
                    [m for m in queue if isinstance(m, Cotangent)],
                    [m for m in queue if isinstance(m, Factor)],
                )
        if graph.names[node] != LEAF and any(child in graph.wanted for child, _ in graph.children[node]):
            self._send_on(node, inbox)
        self.budget.alive -= held

    def _hooked(self, node: Node, nr: int, messages: list[Message]) -> list[Cotangent]:
        visit = NodeView(self.graph, node, {}, self._ledger, self._ancestry)
        return visit.hooked(nr, [self._as_group(m, node, nr) for m in messages])

    def _send_on(self, node: Node, inbox: dict[int, list[Message]]) -> None:
        visit = NodeView(self.graph, node, {}, self._ledger, self._ancestry)
        step = rules.ISOMETRIES.get(visit.name) if node not in self.graph.hooks.nodes else None
        for nr, queue in inbox.items():
            groups = []
            for m in queue:
                if isinstance(m, Cotangent):
                    groups.append(m)
                elif step is not None:
                    visit.forward_factor(0, m, step(visit, nr))
                else:
                    groups.append(self._as_group(m, node, nr))
            if groups:
                visit.arrivals[nr] = unite(groups, self.budget.charge) if len(groups) > 1 else groups
        # Nothing is owed to inputs without elements, and a rule may ask for the shape of one that is owed something.
        if visit.arrivals and any(visit.edges):
            self._apply_rule(visit)
        for place, message in visit.sent:
            target = visit.edges[place]
            assert target is not None, "nothing is sent to an edge that leads nowhere"
            self._deliver(*target, message)

    def _apply_rule(self, visit: NodeView) -> None:
        noted = len(self.dense)
        try:
            rules.rule_for(self.graph, visit.node)(visit)
        except UnsavedError as missing:
            if any((visit.node, place) in self._settled for place in range(len(visit.edges))):
                raise GraphError(f"{visit.name} saves no {missing} in this release of PyTorch") from None
            visit.sent.clear()
            rules.opaque(visit)
            if self.dense[noted:]:
                self.dense[noted:] = [Loss(visit.name, f"saves no {missing} in this release of PyTorch")]

    def _as_group(self, message: Message, node: Node, nr: int) -> Cotangent:
        if isinstance(message, Cotangent):
            return message
        return self._multiplied(message, self.graph.metadata(node)[nr].shape)

    def _multiplied(self, factor: Factor, shape: tuple[int, ...]) -> Cotangent:
        """A factor that meets an operation which is no isometry becomes rows of `shape`."""
        if len(factor.rows) > 1:
            self.budget.charge(len(factor.rows) * math.prod(shape) * factor.dtype.itemsize)
        if self.dry:
            values = torch.empty(len(factor.rows), *shape, dtype=factor.dtype, device="meta")
            return materialised(factor.rows, values)
        return materialised(factor.rows, factor.materialise())


def _nested(
    budget: Budget,
    dense: list[Loss],
    dry: bool,
    outputs: Sequence[Tensor],
    operands: Sequence[Tensor | None],
    arrivals: Mapping[int, list[Cotangent]],
) -> list[tuple[int, Message]]:
    """Walk the graph from outputs to operands; returns what arrived at each operand that requires grad."""
    wanted = {n: t for n, t in enumerate(operands) if t is not None and t.requires_grad}
    place = {edge_of(t): n for n, t in wanted.items()}
    starts = [(outputs[nr], group) for nr, queue in arrivals.items() for group in queue]
    graph = read([output for output, _ in starts], list(wanted.values()), missing_ok=True)
    graph.hooks = Hooks()
    found: list[tuple[int, Message]] = []

    def note(edge: Edge, groups: list[Cotangent], factors: list[Factor]) -> None:
        found.extend((place[edge], group) for group in groups)
        found.extend((place[edge], factor) for factor in factors)

    Walk(graph, note, budget, dry, dense).run([group for _, group in starts])
    return found


def plain_bytes(graph: Graph) -> int:
    """About what plain training holds at once: what the operations computed, and the gradients of the inputs."""
    computed = [
        math.prod(output.shape) * output.dtype.itemsize
        for node in graph.wanted
        if graph.names[node] != LEAF and graph.names[node] not in rules.ISOMETRIES
        for output in graph.metadata(node)
    ]
    return sum(computed) + sum(t.nbytes for t in graph.targets.values())


def _stacked_bytes(group: Cotangent) -> int:
    return group.values.nbytes if group.layout.stacked > 1 else 0


def seeds_for(losses: Sequence[Tensor], owned: Mask | None = None, dry: bool = False) -> list[Cotangent | None]:
    """The identity: loss i owns element i. With `owned` (a mask over all m) only those losses are asked for."""
    seeds: list[Cotangent | None] = []
    start = 0
    for loss in losses:
        rows = np.arange(start, start + loss.numel(), dtype=np.int64)
        start += loss.numel()
        if owned is not None:
            rows = np.where(owned[rows], rows, -1)
        if not (rows >= 0).any():
            seeds.append(None)
            continue
        layout = canonical([Piece(loss.numel(), True)], rows[None] if loss.numel() > 1 else rows)
        device = torch.device("meta") if dry else loss.device
        seeds.append(Cotangent(layout, _ones(loss, rows, device)))
    return seeds


def _ones(loss: Tensor, rows: Rows, device: torch.device) -> Tensor:
    if (rows >= 0).all():
        return torch.ones(1, *loss.shape, dtype=loss.dtype, device=device)
    mask = placed(rows >= 0, loss.device).view(1, *loss.shape)
    return mask.to(dtype=loss.dtype, device=device)


def add_shares(
    graph: Graph,
    losses: Sequence[Tensor],
    totals: Mapping[Edge, Sum],
    budget: Budget,
    owned: Mask | None = None,
    also: OnTarget | None = None,
    within: AbstractContextManager[Any] | None = None,
) -> list[Loss]:
    """Add each input's share (for the losses in the mask `owned`) to its sum; returns where batch axes were lost.

    `also` is told what arrived at an input as well; the walk is done `within` a context.
    """

    def add(edge: Edge, groups: list[Cotangent], factors: list[Factor]) -> None:
        if edge in totals:
            settle(totals[edge], graph.targets[edge].shape, groups, factors)
        if also is not None:
            also(edge, groups, factors)

    walk = Walk(graph, add, budget, keeps=also is not None)

    def run() -> None:
        with within or nullcontext():
            walk.run(seeds_for(losses, owned))

    in_graph_task(run)
    return walk.dense
