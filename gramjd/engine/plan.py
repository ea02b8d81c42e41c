"""Plans: what the walk does at a node, decided once per structure and used again at every node of that structure.

The structure of a node is its name, the shapes of its outputs and inputs, the layouts that arrive, and the numbers it
saved. A network repeats its layers, and training its steps, so most visits find a plan. A rule that looks at the values
of a tensor (an index decides who owns a row) is run at every visit; that costs its own node only. Plans are kept per
thread, and hold no tensor of a graph.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any

from gramjd.engine import _torch, rules, structure
from gramjd.engine.cotangent import Charge, Cotangent, UnplannedError
from gramjd.engine.delivery import Delivery, FactorDelivery
from gramjd.engine.graph import Graph, Node
from gramjd.engine.isometry import Isometry
from gramjd.engine.layout import SMALL
from gramjd.engine.node import NodeView, Rule, Send, SendFactor, SendGraph, Sends
from gramjd.engine.unite import unite
from gramjd.errors import RuleError

# What a rule sent, with everything about it decided.
Sent = Delivery | FactorDelivery | SendGraph
# Cotangents with the output that each arrived at.
Arrivals = list[tuple[int, Cotangent]]
# Plans per thread, and plans of one node that differ in what arrives or in saved numbers.
MOST, VARIANTS = 8192, 8


class NodePlan:
    """What one node sends, given what arrived."""

    def __init__(self, view: NodeView, arrivals: Arrivals, rule: Rule) -> None:
        self.view = view
        self.slots = [
            (nr, Cotangent(c.layout, c.shape, c.dtype, operation=c.operation, donated=c.donated)) for nr, c in arrivals
        ]
        self.busy = False
        # Under which it is kept, once it is known to serve other nodes.
        self.key: Hashable = None
        self._rule = rule
        self._sent: list[Sent] | None = None

    def serves(self, node: Node, arrivals: Arrivals) -> bool:
        """Returns True if this is the plan of a node of the same name and shapes, given what arrived."""
        if self.busy or len(arrivals) != len(self.slots):
            return False
        for (nr, slot), (mine, c) in zip(self.slots, arrivals, strict=True):
            if slot.layout is not c.layout or nr != mine or slot.donated is not c.donated:
                return False
        return _agrees(node, self.view.guards)

    def bind(self, graph: Graph, node: Node, charge: Charge, arrivals: Arrivals) -> NodePlan:
        """Be the plan of this node until `release`, with the values that arrived, if there are any."""
        self.busy = True
        view = self.view
        view.graph, view.handle, view.charging = graph, node, charge
        for (_, slot), (_, cotangent) in zip(self.slots, arrivals, strict=True):
            slot.take(cotangent)
        return self

    def release(self) -> None:
        """Drop all values."""
        self.busy = False
        for _, slot in self.slots:
            slot.drop()
        self.view.release()

    def sent(self) -> Iterator[Sent] | list[Sent]:
        """Everything that is sent, in order; the first time while the rule decides it."""
        if self._sent is None:
            return self._decided()
        if self.view.charged:
            self.view.charge(self.view.charged)
        return self._sent

    def _decided(self) -> Iterator[Sent]:
        view = self.view
        sent: list[Sent] = []
        for nr in dict.fromkeys(nr for nr, _ in self.slots):
            view.arrivals[nr] = unite([slot for other, slot in self.slots if other == nr], view.charge)
        for send in self._named(self._rule(view)):
            if isinstance(send, SendGraph):
                sent.append(send)
            elif view.wants(send.edge):
                sent.append(_delivery(view, send))
            else:
                continue
            yield sent[-1]
        self._sent = sent

    def _named(self, sends: Sends) -> Iterator[Send | SendFactor | SendGraph]:
        try:
            yield from sends
        except UnplannedError:
            raise RuleError(
                f"the rule of {self.view.name} read values outside of what it sends: compute in the functions that "
                "are sent, which a plan does not call"
            ) from None

    def redo(self, rule: Rule) -> None:
        """Begin again with another rule."""
        self._rule, self._sent = rule, None
        self.view.lost.clear()
        self.view.computing = False

    @property
    def reusable(self) -> bool:
        """Returns True if the plan serves other nodes of the same structure."""
        if self._sent is None or self.view.reads_data:
            return False
        layouts = [slot.layout for _, slot in self.slots]
        layouts += [sent.send.layout for sent in self._sent if isinstance(sent, Delivery)]
        return all(layout.owners.size <= SMALL for layout in layouts)


def _delivery(view: NodeView, send: Send | SendFactor) -> Delivery | FactorDelivery:
    return Delivery(view, send) if isinstance(send, Send) else FactorDelivery(view, send)


class _Known(threading.local):
    """The plans of a thread."""

    def __init__(self) -> None:
        self.plans: OrderedDict[Hashable, list[NodePlan]] = OrderedDict()


_known = _Known()


def forget() -> None:
    """Drop all plans of this thread."""
    _known.plans.clear()
    structure.forget()


def plan_of(graph: Graph, n: int, arrivals: Arrivals, charge: Charge) -> NodePlan:
    """The plan of the n-th node, found or begun, and bound to it."""
    shapes, node = graph.structure, graph.nodes[n]
    name = shapes.names[n]
    steady = name not in rules.CUSTOM and node not in graph.hooks.nodes
    for plan in shapes.plans[n] if steady else ():
        if plan.serves(node, arrivals):
            return plan.bind(graph, node, charge, arrivals)
    rule = rules.rule_for(graph, node)
    arrived = tuple([(nr, c.layout, c.donated) for nr, c in arrivals])
    key = (rule, name, shapes.outputs[n], shapes.inputs[n], shapes.parametric[n], arrived)
    for plan in _known.plans.get(key, ()) if steady else ():
        if plan.serves(node, arrivals):
            _add(shapes.plans[n], plan)
            return plan.bind(graph, node, charge, arrivals)
    plan = NodePlan(NodeView(name, shapes.outputs[n], shapes.inputs[n], shapes.parametric[n]), arrivals, rule)
    plan.key = key if steady else None
    return plan.bind(graph, node, charge, arrivals)


def keep(graph: Graph, n: int, plan: NodePlan) -> None:
    """Let the plan of the n-th node serve other nodes, if it may."""
    if plan.key is None or not plan.reusable:
        return
    _add(graph.structure.plans[n], plan)
    _add(_known.plans.setdefault(plan.key, []), plan)
    plan.key = None
    while len(_known.plans) > MOST:
        _known.plans.popitem(last=False)


def isometry_of(graph: Graph, n: int, nr: int) -> Isometry | None:
    """What a factor at an output of the n-th node passes through; None if the node is no isometry."""
    shapes, node = graph.structure, graph.nodes[n]
    make = rules.ISOMETRIES.get(shapes.names[n])
    if make is None or node in graph.hooks.nodes:
        return None
    known: list[tuple[dict[str, Any], Isometry]] = shapes.isometries.setdefault((n, nr), [])
    for guards, found in known:
        if _agrees(node, guards):
            return found
    view = NodeView(shapes.names[n], shapes.outputs[n], shapes.inputs[n], shapes.parametric[n])
    view.graph, view.handle = graph, node
    found = make(view, nr)
    _add(known, (view.guards, found))
    return found


def _agrees(node: Node, guards: dict[str, Any]) -> bool:
    """Returns True if a node saved the numbers that a plan relies on."""
    for name, value in guards.items():  # noqa: SIM110 (a generator takes twice as long)
        if _torch.saved(node, name) != value:
            return False
    return True


def _add(entries: list[Any], entry: Any) -> None:
    entries.append(entry)
    del entries[:-VARIANTS]
