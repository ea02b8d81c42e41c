"""Plans: what the walk does at a node, decided once per structure and used again at every node of that structure.

The structure of a node is its name, the shapes of its outputs and inputs, the layouts that arrive, and the numbers it
saved. A network repeats its layers, and training its steps, so most visits find a plan. A rule that looks at the values
of a tensor (an index decides who owns a row) is run at every visit; that costs its own node only. Plans are kept per
thread, and hold no tensor of a graph.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from gramjd.engine import _torch, rules
from gramjd.engine.cotangent import Charge, Cotangent, unite, unlimited
from gramjd.engine.delivery import Delivery, FactorDelivery
from gramjd.engine.graph import Ancestry, Edge, Graph, Node
from gramjd.engine.isometry import Isometry
from gramjd.engine.layout import SMALL
from gramjd.engine.node import NodeView, Rule, Send, SendFactor, SendGraph

Step = Delivery | FactorDelivery | SendGraph
Arrivals = dict[int, list[Cotangent]]
# Plans per thread, and plans with the same shapes and layouts that differ in saved numbers.
MOST, VARIANTS = 8192, 8


class NodePlan:
    """What one node sends, given what arrived. `steps` yields it in order."""

    def __init__(self, view: NodeView, arrivals: Arrivals, rule: Rule) -> None:
        self.view = view
        self.slots = [
            (nr, Cotangent(c.layout, c.shape, c.dtype, operation=c.operation, donated=c.donated))
            for nr, queue in arrivals.items()
            for c in queue
        ]
        self.busy = False
        # Where it is kept, once it is known to serve other nodes.
        self.key: Hashable = None
        self._rule = rule
        self._steps: list[Step] | None = None

    def fill(self, arrivals: Arrivals) -> None:
        """Put in the values that arrived."""
        given = iter([c for queue in arrivals.values() for c in queue])
        for (_, slot), cotangent in zip(self.slots, given, strict=True):
            slot.fill(cotangent.values)

    def release(self) -> None:
        """Drop all values."""
        self.busy = False
        for _, slot in self.slots:
            slot.fill(None)
        self.view.release()

    def steps(self) -> Iterator[Step]:
        """Everything that is sent; the first time while the rule decides it."""
        if self._steps is not None:
            if self.view.charged:
                self.view.charge(self.view.charged)
            yield from self._steps
            return
        view = self.view
        for nr in dict.fromkeys(nr for nr, _ in self.slots):
            queue = [slot for other, slot in self.slots if other == nr]
            view.arrivals[nr] = unite(queue, view.charge)
        steps: list[Step] = []
        for send in self._rule(view):
            if isinstance(send, SendGraph):
                steps.append(send)
            elif view.wants(send.edge):
                steps.append(_delivery(view, send))
            else:
                continue
            yield steps[-1]
        self._steps = steps

    def redo(self, rule: Rule) -> None:
        """Begin again with another rule."""
        self._rule, self._steps = rule, None
        self.view.lost.clear()

    @property
    def reusable(self) -> bool:
        """Returns True if the plan serves other nodes of the same structure."""
        small = all(slot.layout.owners.size <= SMALL for _, slot in self.slots)
        return small and self._steps is not None and not self.view.reads_data


def _delivery(view: NodeView, send: Send | SendFactor) -> Delivery | FactorDelivery:
    return Delivery(view, send) if isinstance(send, Send) else FactorDelivery(view, send)


class _Known(threading.local):
    """The plans of a thread, and the isometries of its nodes."""

    def __init__(self) -> None:
        self.plans: OrderedDict[Hashable, list[NodePlan]] = OrderedDict()
        self.isometries: OrderedDict[Hashable, list[tuple[dict[str, Any], Isometry]]] = OrderedDict()


_known = _Known()


def forget() -> None:
    """Drop all plans of this thread."""
    _known.plans.clear()
    _known.isometries.clear()


def plan_of(
    graph: Graph, node: Node, targets: Sequence[Edge | None], arrivals: Arrivals, ancestry: Ancestry, charge: Charge
) -> NodePlan:
    """The plan of a node, found or begun; it is bound to the node, and holds no values yet."""
    name = graph.names[node]
    outputs = tuple(graph.metadata(node))
    inputs = tuple([None if t is None else graph.metadata(t[0])[t[1]] for t in targets])
    parametric = tuple([t is not None and ancestry.leads(t[0]) for t in targets])
    arrived = tuple([(nr, c.layout, c.donated) for nr, queue in arrivals.items() for c in queue])
    steady = name not in rules.CUSTOM and node not in graph.hooks.nodes
    rule = rules.rule_for(graph, node)
    key = (rule, name, outputs, inputs, parametric, arrived)
    if steady:
        for plan in _known.plans.get(key, ()):
            if not plan.busy and _agrees(node, plan.view.guards):
                plan.busy = True
                plan.view.bind(graph, node, charge)
                return plan
    view = NodeView(name, outputs, inputs, parametric)
    view.bind(graph, node, charge)
    plan = NodePlan(view, arrivals, rule)
    plan.busy, plan.key = True, key if steady else None
    return plan


def keep(plan: NodePlan) -> None:
    """Let a plan serve other nodes, if it may."""
    if plan.key is None or not plan.reusable:
        return
    _remember(_known.plans, plan.key, plan)
    plan.key = None


def isometry_of(graph: Graph, node: Node, nr: int) -> Isometry | None:
    """What a factor at an output of a node passes through; None if the node is no isometry."""
    make = rules.ISOMETRIES.get(graph.names[node]) if node not in graph.hooks.nodes else None
    if make is None:
        return None
    (child, place), *_ = graph.children[node]
    outputs, target = tuple(graph.metadata(node)), graph.metadata(child)[place]
    key = (graph.names[node], nr, outputs, target)
    for guards, found in _known.isometries.get(key, ()):
        if _agrees(node, guards):
            return found
    view = NodeView(graph.names[node], outputs, [target], [True])
    view.bind(graph, node, unlimited)
    found = make(view, nr)
    _remember(_known.isometries, key, (view.guards, found))
    return found


def _agrees(node: Node, guards: dict[str, Any]) -> bool:
    """Returns True if a node saved the numbers that a plan relies on."""
    return all(_torch.saved(node, name) == value for name, value in guards.items())


def _remember(table: OrderedDict[Hashable, Any], key: Hashable, entry: Any) -> None:
    variants = table.setdefault(key, [])
    variants.append(entry)
    del variants[:-VARIANTS]
    while len(table) > MOST:
        table.popitem(last=False)
