"""The walk: every node once, in reverse order of the forward pass, messages dropped as soon as they are used.

The same walk plans and computes. At each node it takes what the node's plan sends, in order; where it computes, it
calls the functions that come with it, and where it plans, layouts and shapes go on alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import dtensor, rules
from gramjd.engine import plan as plans
from gramjd.engine.anomaly import finds_nan, refuse_nan
from gramjd.engine.autograd import in_graph_task
from gramjd.engine.cotangent import Cotangent, by_loss, densify, index_tensor
from gramjd.engine.delivery import Delivery, FactorDelivery
from gramjd.engine.factor import Factor
from gramjd.engine.gaps import overlay
from gramjd.engine.given import GivenRows
from gramjd.engine.graph import Edge, Graph, edge_of, read
from gramjd.engine.hooks import Hooks, at_edge
from gramjd.engine.layout import Mask, Owners, Piece, canonical
from gramjd.engine.memory import Meter
from gramjd.engine.node import LostAxis, Message, NodeView, Overwrite, SendGraph, UnsavedError
from gramjd.engine.parameter import Jacobian
from gramjd.engine.rules.vocabulary import in_parts
from gramjd.engine.segments import rows_by_loss
from gramjd.engine.structure import Place, Structure, structured
from gramjd.engine.unite import added, appended
from gramjd.errors import GraphError
from gramjd.kernels.cost import chunk, chunks_within
from gramjd.kernels.products import library_fixed
from gramjd.kernels.tracing import TraceError

OnTarget = Callable[[Edge, Jacobian], None]
HOOKED = "has a hook, which must see one whole row"
SUMS = "sums over the batch axis, for a tensor that all samples share"


@dataclass
class Walk:
    """One pass over a graph. `on_target` receives the Jacobian of each input, once it is complete.

    `computes`: False for a plan, whose Jacobians have shapes and layouts but no numbers. `keeps`: `on_target` may refer
    to what it received later, so that nothing of it is written over. `inside`: of a graph that was made on the spot.
    """

    graph: Graph
    on_target: OnTarget
    meter: Meter
    computes: bool = True
    keeps: bool = True
    inside: bool = False
    lost: list[LostAxis] = field(default_factory=list)

    def run(self, seeds: Sequence[Cotangent | None]) -> None:
        """Start from one cotangent per loss tensor (None: not asked for)."""
        temporaries = self.meter.limits.temporaries
        temporaries = self.graph.structure.plain_bytes / 10 if temporaries is None else temporaries
        itemsize = max((t.dtype.itemsize for t in self.graph.targets.values()), default=4)
        sharded = self.graph.sharded if self.computes else None
        gathering = nullcontext() if sharded is None else sharded.gathering(self.graph)
        with chunks_within(temporaries, itemsize), library_fixed(), gathering as self._gathering:
            self._run(seeds)

    def _run(self, seeds: Sequence[Cotangent | None]) -> None:
        graph = self.graph
        self._structure: Structure = graph.structure
        self._watched = self.computes and not self.inside and finds_nan()
        number = graph.number
        self._targets = {(number[node], nr): (node, nr) for node, nr in graph.targets if node in number}
        self._hooked = {(number[node], nr) for node, nr in graph.hooks.edges}
        # Nodes with an output that is an input of interest, or has hooks.
        self._special = {n for n, _ in self._targets} | {n for n, _ in self._hooked}
        self._waiting = list(self._structure.arrivals)
        # What arrived at each node: messages with the output that they are for.
        self._inbox: list[list[tuple[int, Message]]] = [[] for _ in graph.nodes]
        # Edges whose target has had its messages already, in the middle of a visit.
        self._early: set[Place] = set()
        for (node, nr), seed in zip(graph.roots, seeds, strict=True):
            if seed is not None and number[node] in self._structure.wanted:
                self._deliver((number[node], nr), seed)
        waiting, early, gathering = self._waiting, self._early, self._gathering
        for n in self._structure.order:
            if gathering is not None:
                gathering.enter(n)
            if self._inbox[n]:
                self._visit(n)
            if gathering is not None:
                gathering.leave(n)
            for at, child in self._structure.children[n]:
                if not (early and (n, at) in early):
                    waiting[child] -= 1

    # -- one node ----------------------------------------------------------------------------------------------------

    def _visit(self, n: int) -> None:
        inbox, self._inbox[n] = self._inbox[n], []
        held = 0
        for _, message in inbox:
            if not isinstance(message, Factor) and message.layout.stacked > 1:
                held += message.nbytes
        if n in self._special:
            for nr in dict.fromkeys([nr for nr, _ in inbox]):
                place, mine = (n, nr), [m for other, m in inbox if other == nr]
                if place in self._hooked:
                    mine = [self._after_hooks(place, mine)]
                    inbox = [pair for pair in inbox if pair[0] != nr] + [(nr, mine[0])]
                if place in self._targets:
                    self._arrive(place, mine)
        if self._structure.inner[n]:
            self._pass_on(n, inbox)
        self.meter.alive -= held

    def _arrive(self, place: Place, queue: Sequence[Message]) -> None:
        """Hand an input its Jacobian."""
        edge = self._targets[place]
        factors: list[Factor] = []
        for message in queue:
            if isinstance(message, Factor):
                factors.append(message)
                continue
            message.donated = False  # rows that are asked for may be kept
            shape = (message.layout.stacked, *message.shape)
            values = message.values if self.computes else torch.empty(shape, dtype=message.dtype, device="meta")
            factors.append(GivenRows.of(message, values))
        target, mesh = self.graph.targets[edge], self.graph.mesh
        jacobian = Jacobian(tuple(target.shape), factors)
        if mesh is not None and self.computes and not self.inside:
            jacobian = dtensor.counted(jacobian, target, mesh)
        self.on_target(edge, jacobian)

    def _after_hooks(self, place: Place, queue: Sequence[Message]) -> Cotangent:
        """What arrived at a tensor with hooks, as those leave it.

        A hook need not be linear: it must see the whole gradient of a loss, added up over everything that arrived.
        """
        n, nr = place
        given = [self._multiplied(m, place) for m in queue]
        lost = [c for c in given if c.layout.diagonal and c.layout.losses > 1]
        self.lost += [LostAxis(self._structure.names[n], HOOKED) for _ in lost]
        alone = [densify(c, None, self.meter.charge) for c in given]
        owners = np.concatenate([c.layout.owners.reshape(-1) for c in alone])
        layout, sums = by_loss(owners, math.prod(alone[0].shape))
        if not self.computes:
            return Cotangent(layout, alone[0].shape, alone[0].dtype)
        values = at_edge(self.graph, (self.graph.nodes[n], nr), sums(torch.cat([c.values for c in alone])))
        for cotangent in given:
            cotangent.drop()
        return Cotangent.of(layout, values)

    def _pass_on(self, n: int, inbox: list[tuple[int, Message]]) -> None:
        """Send what arrived at a node's outputs to its inputs."""
        targets, arrivals = self._structure.targets[n], []
        for nr, message in inbox:
            if not isinstance(message, Factor):
                arrivals.append((nr, message))
                continue
            isometry = plans.isometry_of(self.graph, n, nr)
            if isometry is None or targets[0] is None:
                arrivals.append((nr, self._multiplied(message, (n, nr))))
            else:
                self._deliver(targets[0], message.through(isometry))
        if not arrivals:
            return
        plan = plans.plan_of(self.graph, n, arrivals, self.meter.charge)
        try:
            try:
                outbox = self._sent(n, plan)
            except UnsavedError as missing:
                outbox = self._sent_densely(n, plan, str(missing))
            except TraceError as error:
                error.operation = error.operation or plan.view.name
                raise
            for at, message in outbox:
                target = targets[at]
                assert target is not None, "nothing is sent to an edge that leads nowhere"
                self._deliver(target, message)
            if plan.key is not None:
                plans.keep(self.graph, n, plan)
            if self._watched:
                refuse_nan(self.graph.nodes[n], outbox)
        finally:
            plan.release()

    def _sent(self, n: int, plan: plans.NodePlan) -> list[tuple[int, Message]]:
        """What a plan sends, with the edge that each goes to."""
        view, computes = plan.view, self.computes
        outbox: list[tuple[int, Message]] = []
        lost: list[LostAxis] = []
        for step in plan.sent():
            view.computing = computes
            if type(step) is Delivery:
                message = self._cotangent(n, step, outbox)
                if message is not None:
                    outbox.append((step.edge, message))
                if step.sums and not self._of_parameters(n, step.edge):
                    lost.append(LostAxis(view.name, SUMS))
            elif type(step) is FactorDelivery:
                outbox.append((step.edge, step.computed() if computes else step.planned()))
            elif type(step) is SendGraph:
                outbox += self._graph_walked(view, step)
            view.computing = False
        if view.lost or lost:
            self.lost += [*view.lost, *lost]
        return outbox

    def _sent_densely(self, n: int, plan: plans.NodePlan, missing: str) -> list[tuple[int, Message]]:
        """The same, where nodes of this kind do not save what their rule reads."""
        if any((n, at) in self._early for at, _ in self._structure.children[n]):
            raise GraphError(f"{plan.view.name} saves no {missing} in this release of PyTorch") from None
        plan.redo(rules.dense_fallback)
        known = len(self.lost)
        outbox = self._sent(n, plan)
        if self.lost[known:]:
            self.lost[known:] = [LostAxis(plan.view.name, f"saves no {missing} in this release of PyTorch")]
        return outbox

    def _of_parameters(self, n: int, at: int) -> bool:
        target = self._structure.targets[n][at]
        return target is None or self._structure.parameters_only[target[0]]

    def _cotangent(self, n: int, step: Delivery, outbox: list[tuple[int, Message]]) -> Cotangent | None:
        if step.nbytes:
            self.meter.charge(step.nbytes)
        over = step.send.over
        donated = over is not None and self._donated(n, step, over, outbox)
        if not self.computes:
            return step.planned()
        if over is None or not donated:
            return step.computed(step.send.compute())
        return step.computed(_written_over(over.cotangent.values, step, over))

    def _graph_walked(self, view: NodeView, send: SendGraph) -> list[tuple[int, Message]]:
        """Walk a graph that computes the same as a node, made on the spot."""
        given: list[Tensor | None] = []
        for edge, operand in enumerate(send.operands):
            computes = self.computes or send.numbers
            one = None if operand is None else (operand.compute() if computes else operand.planned())
            given.append(one if one is None or not view.wants(edge) else one.detach().requires_grad_())
        with torch.enable_grad():
            outputs = send.build(given)
        wanted = {at: t for at, t in enumerate(given) if t is not None and t.requires_grad}
        place = {edge_of(t): at for at, t in wanted.items()}
        starts = [(outputs[nr], c) for nr, queue in view.arrivals.items() for c in queue]
        graph = structured(read([output for output, _ in starts], list(wanted.values()), missing_ok=True))
        graph.hooks = Hooks()
        self.meter.charge(graph.structure.plain_bytes)
        found: list[tuple[int, Message]] = []

        def note(edge: Edge, jacobian: Jacobian) -> None:
            found.extend((place[edge], _message_of(f)) for f in jacobian.factors)

        walk = Walk(graph, note, self.meter, self.computes, inside=True, lost=self.lost)
        walk.run([Cotangent.of(c.layout, c.values) if self.computes else _bare(c) for _, c in starts])
        return found

    # -- memory that is donated --------------------------------------------------------------------------------------

    def _donated(self, n: int, step: Delivery, over: Overwrite, outbox: list[tuple[int, Message]]) -> bool:
        """Have the parameters behind a node use what they received. Returns True if nothing refers to it any more."""
        if step.numel <= chunk() or (self.computes and not over.cotangent.values.is_contiguous()):
            return False
        used = [self._used_early(n, at, outbox) for at in over.parameters]
        return all(used)

    def _used_early(self, n: int, at: int, outbox: list[tuple[int, Message]]) -> bool:
        """Visit the parameter behind an edge in the middle of a visit.

        Returns True if that was its last use, and nothing is kept of it.
        """
        target = self._structure.targets[n][at]
        if target is None:
            return True
        if not self._structure.parametric[n][at]:
            return False
        for _, message in [pair for pair in outbox if pair[0] == at]:
            self._deliver(target, message)
        outbox[:] = [pair for pair in outbox if pair[0] != at]
        self._early.add((n, at))
        ready, complete = [(n, at)], True
        while ready:
            parent, edge = ready.pop()
            (child, _) = self._structure.edges[parent][edge] or (0, 0)
            self._waiting[child] -= 1
            complete = not self._waiting[child]
            if complete:
                self._visit(child)
                below = [(child, k) for k, _ in self._structure.children[child]]
                self._early.update(below)
                ready += below
        return complete and not self.keeps

    # -- messages ----------------------------------------------------------------------------------------------------

    def _deliver(self, place: Place, message: Message) -> None:
        n, nr = place
        inbox = self._inbox[n]
        if not isinstance(message, Factor):
            for k, (mine, other) in enumerate(inbox):
                if mine != nr or isinstance(other, Factor):
                    continue
                layout = overlay(other.layout, message.layout)
                if layout is not None:
                    inbox[k] = nr, added(other, message, layout)
                    return
                both = appended(other, message, self._waiting[n], self.meter.charge)
                if both is not None:
                    self.meter.alive += both.stacked_bytes - other.stacked_bytes
                    inbox[k] = nr, both
                    return
            if message.layout.stacked > 1:
                self.meter.alive += message.nbytes
        inbox.append((nr, message))

    def _multiplied(self, message: Message, place: Place) -> Cotangent:
        """A factor that meets an operation which is no isometry becomes rows."""
        if isinstance(message, Cotangent):
            return message
        shape = self._structure.outputs[place[0]][place[1]].shape
        layout, _ = by_loss(message.owners, math.prod(shape))
        if layout.stacked > 1:
            self.meter.charge(layout.stacked * math.prod(shape) * message.dtype.itemsize)
        if not self.computes:
            return Cotangent(layout, shape, message.dtype)
        return Cotangent.of(layout, rows_by_loss(message, layout.owners))


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
