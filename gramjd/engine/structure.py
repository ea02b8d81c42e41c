"""The structure of a graph: everything about it but the identity of its nodes and the numbers they saved.

A training loop makes a graph of the same structure at every step. What follows from the structure (which nodes lead to
an input, in which order they are visited, what they send) is worked out once and kept per thread.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import zlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gramjd.engine import _torch
from gramjd.engine.graph import LEAF, PRODUCTS, Graph, Metadata, metadata_of
from gramjd.engine.rules import ISOMETRIES

if TYPE_CHECKING:
    from gramjd.engine.isometry import Isometry
    from gramjd.engine.plan import NodePlan
    from gramjd.engine.survey import Survey

# A node by its place among all nodes, and one of its outputs.
Place = tuple[int, int]
# Structures kept, and nodes in all of them (about 2 kB each).
MOST, MOST_NODES = 64, 1 << 15


class Structure:
    """What walks over graphs of one structure have in common. Nodes are numbered in the order they were found in.

    `edges[n]` are the places that node n's edges lead to, `targets[n]` the same where an input of interest lies behind
    them. `outputs[n]` and `inputs[n]` are shapes and dtypes there. `parametric[n]` says which edges lead straight to an
    input, through isometries only.
    """

    def __init__(self, graph: Graph, places: Sequence[Place]) -> None:
        nodes = list(graph.edges)
        number = {node: n for n, node in enumerate(nodes)}
        self.names = list(graph.names.values())
        self.edges: list[list[Place | None]] = [
            [None if child is None else (number[child], nr) for child, nr in edges] for edges in graph.edges.values()
        ]
        self.wanted = self._reaching({n for n, _ in places})
        self.outputs = [
            tuple([metadata_of(node, m) for m in _torch.outputs_of(node)]) if n in self.wanted else ()
            for n, node in enumerate(nodes)
        ]
        self.targets = [[self._target(place) for place in edges] for edges in self.edges]
        self.inputs: list[tuple[Metadata | None, ...]] = [
            tuple([None if place is None else self.outputs[place[0]][place[1]] for place in edges])
            for edges in self.targets
        ]
        # The inputs of interest.
        self.places = set(places)
        self._leading: dict[int, bool] = {}
        self.parametric = [tuple([p is not None and self.leads(p[0]) for p in edges]) for edges in self.targets]
        # Whether a node sends anything on; which of its edges lead to which node.
        self.inner = [any(edges) for edges in self.targets]
        self.children = [
            [(at, place[0]) for at, place in enumerate(edges) if place is not None] for edges in self.edges
        ]
        self.arrivals = [0] * len(nodes)
        for _, child in itertools.chain.from_iterable(self.children):
            self.arrivals[child] += 1
        self.order = self._visited([number[node] for node, _ in graph.roots], nodes)
        self.plain_bytes = self._bytes()
        # What was worked out at each node, the latest last: see `plan`.
        self.plans: list[list[NodePlan]] = [[] for _ in nodes]
        self.isometries: dict[Place, list[tuple[dict[str, Any], Isometry]]] = {}
        # Which losses reach what, and the work of a walk: see `survey`.
        self.survey: Survey | None = None

    def _reaching(self, found: set[int]) -> set[int]:
        """Nodes from which one of these can be reached."""
        parents: dict[int, list[int]] = {}
        for n, edges in enumerate(self.edges):
            for place in edges:
                if place is not None:
                    parents.setdefault(place[0], []).append(n)
        stack = list(found)
        while stack:
            above = [n for n in parents.get(stack.pop(), ()) if n not in found]
            found.update(above)
            stack += above
        return found

    def _target(self, place: Place | None) -> Place | None:
        if place is None or place[0] not in self.wanted or not math.prod(self.outputs[place[0]][place[1]].shape):
            return None
        return place

    def leads(self, n: int) -> bool:
        """Returns True if a node is an input of interest or an isometry of one."""
        if n not in self._leading:
            below = [place for place in self.edges[n] if place is not None]
            if self.names[n] == LEAF:
                found = (n, 0) in self.places
            else:
                found = self.names[n] in ISOMETRIES and len(below) == 1 and self.leads(below[0][0])
            self._leading[n] = found
        return self._leading[n]

    def _visited(self, roots: Sequence[int], nodes: Sequence[_torch.Node]) -> list[int]:
        """Wanted nodes in reverse order of the forward pass, parameters as soon as all their uses were seen."""
        waiting = list(self.arrivals)
        ready: list[tuple[int, int, int]] = []
        ticket = itertools.count()

        def push(n: int) -> None:
            turn = -1 << 62 if self.names[n] == LEAF else -_torch.sequence_number(nodes[n])
            heapq.heappush(ready, (turn, next(ticket), n))

        for n in dict.fromkeys(roots):
            if not waiting[n]:
                push(n)
        order = []
        while ready:
            _, _, n = heapq.heappop(ready)
            order.append(n)
            for _, child in self.children[n]:
                waiting[child] -= 1
                if not waiting[child]:
                    push(child)
        return [n for n in order if n in self.wanted]

    def _bytes(self) -> int:
        """About what plain training holds at once: what the operations computed, and the gradients of the inputs."""
        computed = [n for n in self.wanted if self.names[n] != LEAF and self.names[n] not in ISOMETRIES]
        outputs = [meta for n in computed for meta in self.outputs[n]]
        outputs += [self.outputs[n][nr] for n, nr in self.places]
        return sum(math.prod(meta.shape) * meta.dtype.itemsize for meta in outputs)

    @cached_property
    def check_sum(self) -> int:
        """A number for the nodes, edges and inputs, and the order of a walk."""
        return zlib.crc32(repr((self.names, self.edges, sorted(self.places), self.order)).encode())

    @cached_property
    def parameters_only(self) -> list[bool]:
        """For each node whether no data enter below, as far as the graph shows.

        Data enter a product that has one operand in the graph; not one element by element whose result is no larger.
        """
        found: list[bool | None] = [None] * len(self.edges)
        for start in range(len(self.edges)):
            stack = [start]
            while stack:
                top = stack[-1]
                below = [child for _, child in self.children[top]]
                missing = [n for n in below if found[n] is None]
                if found[top] is None and missing:
                    stack += missing
                    continue
                found[top] = not self._takes_data(top) and all(found[n] for n in below)
                stack.pop()
        return [bool(one) for one in found]

    def _takes_data(self, n: int) -> bool:
        """Returns True for a product with something that is not in the graph, and for leaves that are no inputs."""
        if self.names[n] == LEAF:
            return (n, 0) not in self.places
        if self.names[n] not in PRODUCTS or None not in self.edges[n][:2]:
            return False
        given = [place for place in self.targets[n] if place is not None]
        if self.names[n] != "MulBackward0" or len(given) != 1:
            return True
        (child, nr) = given[0]
        return self.outputs[child][nr].shape != self.outputs[n][0].shape


class _Kept(threading.local):
    def __init__(self) -> None:
        self.structures: OrderedDict[Hashable, Structure] = OrderedDict()
        self.nodes = 0


_kept = _Kept()


def forget() -> None:
    """Drop all structures of this thread."""
    _kept.structures.clear()
    _kept.nodes = 0


def structured(graph: Graph) -> Graph:
    """The graph with its structure, found or worked out."""
    graph.structure = _structure_of(graph)
    return graph


def _structure_of(graph: Graph) -> Structure:
    number = graph.number
    # One flat tuple, in which names tell where a node begins: nested ones would take longer than all the rest.
    flat: list[Hashable] = []
    for node, edges in graph.edges.items():
        flat.append(graph.names[node])
        for child, nr in edges:
            flat += number.get(child, -1), nr
        for output in _torch.outputs_of(node):
            flat += output.is_nested_tensor or tuple(output.shape), output.dtype, output.device
    places = [(number[node], nr) for node, nr in graph.targets if node in number]
    key = (tuple(flat), tuple([(number[node], nr) for node, nr in graph.roots]), tuple(places))
    known = _kept.structures
    found = known.get(key)
    if found is None:
        found = known[key] = Structure(graph, places)
        _kept.nodes += len(number)
        while len(known) > MOST or (_kept.nodes > MOST_NODES and len(known) > 1):
            _kept.nodes -= len(known.popitem(last=False)[1].names)
    else:
        known.move_to_end(key)
    return found
