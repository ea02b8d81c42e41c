"""The walk: every node once, in reverse order of the forward pass, messages dropped as soon as they are used.

The same walk plans and computes. At each node it takes what the node's plan sends, in order; where it computes, it
calls the functions that come with it, and where it plans, layouts and shapes go on alone.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import plan as plans
from gramjd.engine import rules
from gramjd.engine._torch import sequence_number
from gramjd.engine.autograd import in_graph_task
from gramjd.engine.cotangent import Cotangent, added, appended, by_loss, densify, index_tensor
from gramjd.engine.delivery import Delivery, FactorDelivery
from gramjd.engine.factor import Factor, GivenRows
from gramjd.engine.graph import LEAF, Ancestry, Edge, Graph, Node, edge_of, read
from gramjd.engine.hooks import Hooks, at_edge
from gramjd.engine.layout import Mask, Owners, Piece, canonical
from gramjd.engine.memory import Meter, plain_bytes
from gramjd.engine.node import LostAxis, Message, NodeView, Overwrite, SendGraph, UnsavedError
from gramjd.engine.parameter import Jacobian
from gramjd.engine.rules.vocabulary import in_parts
from gramjd.errors import GraphError
from gramjd.kernels.cost import slab, slabs_within

OnTarget = Callable[[Edge, Jacobian], None]
HOOKED = "has a hook, which must see one whole row"


@dataclass
class Walk:
    """One pass over a graph. `on_target` receives the Jacobian of each input, once it is complete.

    `computes`: False for a plan, whose Jacobians have shapes and layouts but no numbers. `keeps`: `on_target` may refer
    to what it received later, so that nothing of it is written over.
    """

    graph: Graph
    on_target: OnTarget
    meter: Meter
    computes: bool = True
    keeps: bool = True
    lost: list[LostAxis] = field(default_factory=list)

    def run(self, seeds: Sequence[Cotangent | None]) -> None:
        """Start from one cotangent per loss tensor (None: not asked for)."""
        temporaries = self.meter.limits.temporaries
        temporaries = plain_bytes(self.graph) / 10 if temporaries is None else temporaries
        itemsize = max((t.dtype.itemsize for t in self.graph.targets.values()), default=4)
        with slabs_within(temporaries, itemsize):
            self._run(seeds)

    def _run(self, seeds: Sequence[Cotangent | None]) -> None:
        self._waiting = dict(self.graph.arrivals)
        self._inbox: dict[Node, dict[int, list[Message]]] = {}
        self._ancestry = Ancestry(self.graph, rules.ISOMETRIES)
        # Edges whose target has had its messages already, in the middle of a visit.
        self._early: set[tuple[Node, int]] = set()
        ready: list[tuple[int, int, Node]] = []
        ticket = itertools.count()

        def push(node: Node) -> None:
            order = -1 << 62 if self.graph.names[node] == LEAF else -sequence_number(node)
            heapq.heappush(ready, (order, next(ticket), node))

        for (node, nr), seed in zip(self.graph.roots, seeds, strict=True):
            if seed is not None and node in self.graph.wanted:
                self._deliver((node, nr), seed)
        for node in dict.fromkeys(node for node, _ in self.graph.roots):
            if not self._waiting.get(node):
                push(node)
        while ready:
            _, _, node = heapq.heappop(ready)
            self._visit(node)
            for place, (child, _) in enumerate(self.graph.edges[node]):
                if child is not None and (node, place) not in self._early and self._is_complete(child):
                    push(child)

    def _is_complete(self, node: Node) -> bool:
        """Count an edge to a node as done. Returns True if it was the last one."""
        self._waiting[node] -= 1
        return not self._waiting[node]

    # -- one node ----------------------------------------------------------------------------------------------------

    def _visit(self, node: Node) -> None:
        inbox = self._inbox.pop(node, None)
        if not inbox:
            return
        graph, held = self.graph, 0
        for nr, queue in inbox.items():
            held += sum(m.stacked_bytes for m in queue if isinstance(m, Cotangent))
            edge = (node, nr)
            if edge in graph.hooks.edges:
                inbox[nr] = queue = [self._hooked(edge, queue)]
            if edge in graph.targets:
                self._arrive(edge, queue)
        if graph.names[node] != LEAF and any(child in graph.wanted for child, _ in graph.children[node]):
            self._pass_on(node, inbox)
        self.meter.alive -= held

    def _arrive(self, edge: Edge, queue: Sequence[Message]) -> None:
        """Hand an input its Jacobian."""
        factors: list[Factor] = []
        for message in queue:
            if isinstance(message, Factor):
                factors.append(message)
                continue
            message.donated = False  # rows that are asked for may be kept
            shape = (message.layout.stacked, *message.shape)
            meta = None if self.computes else torch.empty(shape, dtype=message.dtype, device="meta")
            factors.append(GivenRows.of(message, message.values if meta is None else meta))
        self.on_target(edge, Jacobian(tuple(self.graph.targets[edge].shape), factors))

    def _hooked(self, edge: Edge, queue: Sequence[Message]) -> Cotangent:
        """What arrived at a tensor with hooks, as those leave it.

        A hook need not be linear: it must see the whole gradient of a loss, added up over everything that arrived.
        """
        given = [self._multiplied(m, edge) for m in queue]
        self.lost += [
            LostAxis(self.graph.names[edge[0]], HOOKED) for c in given if c.layout.diagonal and c.layout.losses > 1
        ]
        alone = [densify(c, None, self.meter.charge) for c in given]
        owners = np.concatenate([c.layout.owners.reshape(-1) for c in alone])
        layout, sums = by_loss(owners, math.prod(alone[0].shape))
        if not self.computes:
            return Cotangent(layout, alone[0].shape, alone[0].dtype)
        values = at_edge(self.graph, edge, sums(torch.cat([c.values for c in alone])))
        for cotangent in given:
            cotangent.fill(None)
        return Cotangent.of(layout, values)

    def _pass_on(self, node: Node, inbox: dict[int, list[Message]]) -> None:
        """Send what arrived at a node's outputs to its inputs."""
        graph = self.graph
        targets = [graph.target_of(edge) for edge in graph.edges[node]]
        if not any(targets):
            return  # nothing is owed to inputs without elements
        arrivals: plans.Arrivals = {}
        for nr, queue in inbox.items():
            for message in queue:
                step = plans.isometry_of(graph, node, nr) if isinstance(message, Factor) else None
                if isinstance(message, Factor) and step is not None:
                    assert targets[0] is not None, "an isometry has one input"
                    self._deliver(targets[0], message.through(step))
                else:
                    arrivals.setdefault(nr, []).append(self._multiplied(message, (node, nr)))
        if not arrivals:
            return
        plan = plans.plan_of(graph, node, targets, arrivals, self._ancestry, self.meter.charge)
        try:
            if self.computes:
                plan.fill(arrivals)
            for place, message in self._sent(node, targets, plan):
                target = targets[place]
                assert target is not None, "nothing is sent to an edge that leads nowhere"
                self._deliver(target, message)
            plans.keep(plan)
        finally:
            plan.release()

    def _sent(self, node: Node, targets: Sequence[Edge | None], plan: plans.NodePlan) -> list[tuple[int, Message]]:
        """What a plan sends. A node that does not save what its rule reads goes on with dense rows."""
        try:
            found = self._outgoing(node, targets, plan)
        except UnsavedError as missing:
            if any((node, place) in self._early for place in range(len(targets))):
                raise GraphError(f"{plan.view.name} saves no {missing} in this release of PyTorch") from None
            plan.redo(rules.dense_fallback)
            found = self._outgoing(node, targets, plan)
            if plan.view.lost:
                plan.view.lost[:] = [LostAxis(plan.view.name, f"saves no {missing} in this release of PyTorch")]
        self.lost += plan.view.lost
        return found

    def _outgoing(self, node: Node, targets: Sequence[Edge | None], plan: plans.NodePlan) -> list[tuple[int, Message]]:
        view, outbox = plan.view, []
        noted: list[LostAxis] = []
        for step in plan.steps():
            view.computing = self.computes
            if isinstance(step, SendGraph):
                outbox += self._graph_walked(view, step)
            else:
                message = self._message(node, targets, view, step, outbox)
                if message is not None:
                    outbox.append((step.edge, message))
                if isinstance(step, Delivery) and step.sums and not self._of_parameters(targets[step.edge]):
                    noted.append(LostAxis(view.name, "sums over the batch axis"))
            view.computing = False
        self.lost += noted
        return outbox

    def _of_parameters(self, target: Edge | None) -> bool:
        return target is None or self._ancestry.parameters_only(target[0])

    def _message(
        self,
        node: Node,
        targets: Sequence[Edge | None],
        view: NodeView,
        step: Delivery | FactorDelivery,
        outbox: list[tuple[int, Message]],
    ) -> Message | None:
        if isinstance(step, FactorDelivery):
            return step.computed() if self.computes else step.planned()
        if step.nbytes:
            self.meter.charge(step.nbytes)
        over = step.send.over
        donated = over is not None and self._donated(node, targets, step, over, outbox)
        if not self.computes:
            return step.planned()
        if over is None or not donated:
            return step.computed(step.send.compute())
        return step.computed(_written_over(over.cotangent.values, step, over))

    def _graph_walked(self, view: NodeView, send: SendGraph) -> list[tuple[int, Message]]:
        """Walk a graph that computes the same as a node, made on the spot."""
        given: list[Tensor | None] = []
        for edge, operand in enumerate(send.operands):
            one = None if operand is None else (operand.compute() if self.computes else operand.planned())
            given.append(one if one is None or not view.wants(edge) else one.detach().requires_grad_())
        with torch.enable_grad():
            outputs = send.build(given)
        wanted = {n: t for n, t in enumerate(given) if t is not None and t.requires_grad}
        place = {edge_of(t): n for n, t in wanted.items()}
        starts = [(outputs[nr], c) for nr, queue in view.arrivals.items() for c in queue]
        graph = read([output for output, _ in starts], list(wanted.values()), missing_ok=True)
        graph.hooks = Hooks()
        self.meter.charge(plain_bytes(graph))
        found: list[tuple[int, Message]] = []

        def note(edge: Edge, jacobian: Jacobian) -> None:
            found.extend((place[edge], _message_of(f)) for f in jacobian.factors)

        walk = Walk(graph, note, self.meter, self.computes, lost=self.lost)
        walk.run([Cotangent.of(c.layout, c.values) if self.computes else _bare(c) for _, c in starts])
        return found

    # -- memory that is donated --------------------------------------------------------------------------------------

    def _donated(
        self,
        node: Node,
        targets: Sequence[Edge | None],
        step: Delivery,
        over: Overwrite,
        outbox: list[tuple[int, Message]],
    ) -> bool:
        """Have the parameters behind a node use what they received. Returns True if nothing refers to it any more."""
        small = step.numel <= slab()
        if small or (self.computes and not over.cotangent.values.is_contiguous()):
            return False
        return all([self._used_early(node, targets, place, outbox) for place in over.parameters])

    def _used_early(
        self, node: Node, targets: Sequence[Edge | None], place: int, outbox: list[tuple[int, Message]]
    ) -> bool:
        """Visit the parameter behind an edge in the middle of a visit. Returns True if it was complete, and kept by none."""
        target = targets[place]
        if target is None:
            return True
        if not self._ancestry.leads(target[0]):
            return False
        for _, message in [pair for pair in outbox if pair[0] == place]:
            self._deliver(target, message)
        outbox[:] = [pair for pair in outbox if pair[0] != place]
        self._early.add((node, place))
        ready, complete = [target[0]], True
        while ready:
            one = ready.pop()
            complete = self._is_complete(one)
            if complete:
                self._visit(one)
                ready += [child for child, _ in self.graph.children[one]]
        return complete and not self.keeps

    # -- messages ----------------------------------------------------------------------------------------------------

    def _deliver(self, edge: Edge, message: Message) -> None:
        node, nr = edge
        queue = self._inbox.setdefault(node, {}).setdefault(nr, [])
        if isinstance(message, Cotangent):
            for n, other in enumerate(queue):
                if isinstance(other, Factor):
                    continue
                if other.layout is message.layout:
                    queue[n] = added(other, message)
                    return
                both = appended(other, message, self._waiting.get(node, 0), self.meter.charge)
                if both is not None:
                    self.meter.alive += both.stacked_bytes - other.stacked_bytes
                    queue[n] = both
                    return
            self.meter.alive += message.stacked_bytes
        queue.append(message)

    def _multiplied(self, message: Message, edge: Edge) -> Cotangent:
        """A factor that meets an operation which is no isometry becomes rows."""
        if isinstance(message, Cotangent):
            return message
        shape = self.graph.metadata(edge[0])[edge[1]].shape
        if len(message.owners) > 1:
            self.meter.charge(len(message.owners) * math.prod(shape) * message.dtype.itemsize)
        layout, sums = by_loss(message.owners, math.prod(shape))
        if not self.computes:
            return Cotangent(layout, shape, message.dtype)
        return Cotangent.of(layout, sums(message.materialise()))


def _message_of(factor: Factor) -> Message:
    """What arrived at an operand of a graph on the spot, as a message."""
    if not isinstance(factor, GivenRows):
        return factor
    values = None if factor.values.is_meta else factor.values
    return Cotangent(factor.layout, factor.shape, factor.values.dtype, values, operation=factor.operation)


def _bare(cotangent: Cotangent) -> Cotangent:
    return Cotangent(cotangent.layout, cotangent.shape, cotangent.dtype)


def _written_over(values: Tensor, step: Delivery, over: Overwrite) -> Tensor:
    """What `over.part` makes of rows [K n, *], some at a time, in their own memory: [K, *target]."""
    target = step.target.shape
    count = values.shape[0] * values.shape[1]
    out = values.view(-1)[: step.numel].view(count, *target[1:])
    return in_parts(values.flatten(0, 1), out, over.part).view(-1, *target)


def seeds_for(losses: Sequence[Tensor], asked: Mask | None = None, computes: bool = True) -> list[Cotangent | None]:
    """The identity: loss i owns element i. With `asked` (a mask over all m) only those losses have a cotangent."""
    seeds: list[Cotangent | None] = []
    start = 0
    for loss in losses:
        owners = np.arange(start, start + loss.numel(), dtype=np.int64)
        start += loss.numel()
        if asked is not None:
            owners = np.where(asked[owners], owners, -1)
        if not (owners >= 0).any():
            seeds.append(None)
            continue
        layout = canonical([Piece(loss.numel(), True)], owners[None] if loss.numel() > 1 else owners)
        values = _ones(loss, owners) if computes else None
        seeds.append(Cotangent(layout, loss.shape, loss.dtype, values))
    return seeds


def _ones(loss: Tensor, owners: Owners) -> Tensor:
    if (owners >= 0).all():
        return torch.ones(1, *loss.shape, dtype=loss.dtype, device=loss.device)
    return index_tensor(owners >= 0, loss.device).view(1, *loss.shape).to(loss.dtype)


def walked(
    graph: Graph,
    losses: Sequence[Tensor],
    on_target: OnTarget,
    meter: Meter,
    asked: Mask | None = None,
    *,
    computes: bool = True,
    keeps: bool = True,
) -> list[LostAxis]:
    """Walk from the losses (those in the mask `asked`) inside a backward pass; returns where batch axes were lost."""
    walk = Walk(graph, on_target, meter, computes, keeps)
    in_graph_task(lambda: walk.run(seeds_for(losses, asked, computes)))
    return walk.lost
