"""The peak of a backward pass on paper: gradients travel, saved tensors are given back node by node."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from gramjd.engine._torch import sequence_number
from gramjd.engine.graph import LEAF, Graph, Node
from gramjd.profiling.activations import Storages

_VIEWS = "View UnsafeView ReshapeAlias Alias T Transpose Permute Expand Unsqueeze Squeeze Add Clone Stack Unbind"
# Nodes that hand on the gradient they got, or a view of it.
ALIASES = {f"{name}Backward{n}" for name in _VIEWS.split() for n in range(3)}


def backward_peak(graph: Graph, saved: Mapping[Node, Storages]) -> int:
    """Most bytes alive in `losses.backward(w)`: saved tensors, gradients under way, `.grad` of the parameters."""
    users = Counter(address for mine in saved.values() for address in mine)
    level = _Level(sum({a: size for mine in saved.values() for a, size in mine.items()}.values()))
    inbox: dict[Node, dict[int, _Buffer]] = {}  # which gradient waits at which output of which node
    for node in _order(graph):
        arrived = inbox.pop(node, {})
        if graph.names[node] == LEAF:
            for buffer in arrived.values():  # becomes `.grad`, or is copied where something else refers to it too
                if buffer.users > 1:
                    level.make(buffer.size)
                    level.drop(buffer)
            continue
        passed = list(arrived.values()) if graph.names[node] in ALIASES else []
        for child, nr in node.next_functions:
            if child in graph.wanted:
                size = node_bytes(graph, child, nr)
                buffer = next((b for b in passed if b.size == size), None) or level.make(size)
                buffer.users += 1
                waiting = inbox.setdefault(child, {})
                waiting[nr] = _summed(level, waiting[nr], buffer) if nr in waiting else buffer
        for buffer in arrived.values():
            level.drop(buffer)
        for address, size in saved.get(node, {}).items():
            users[address] -= 1
            level.now -= 0 if users[address] else size
    return level.peak


@dataclass(eq=False)
class _Buffer:
    size: int
    users: int = 0


class _Level:
    def __init__(self, start: int) -> None:
        self.now = self.peak = start

    def make(self, size: int) -> _Buffer:
        self.now += size
        self.peak = max(self.peak, self.now)
        return _Buffer(size)

    def drop(self, buffer: _Buffer) -> None:
        buffer.users -= 1
        self.now -= 0 if buffer.users else buffer.size


def _summed(level: _Level, mine: _Buffer, other: _Buffer) -> _Buffer:
    """The sum of two gradients that meet: in place where nobody else looks at the first."""
    total = mine
    if mine.users > 1:
        total = level.make(mine.size)
        total.users = 1
        level.drop(mine)
    level.drop(other)
    return total


def node_bytes(graph: Graph, node: Node, nr: int) -> int:
    """Bytes of the gradient that arrives at an output of a node."""
    output = graph.metadata(node)[nr]
    return math.prod(output.shape) * int(output.dtype.itemsize)


def _order(graph: Graph) -> list[Node]:
    """Nodes in the order in which the engine runs them: latest first, leaves as soon as they are ready."""
    waiting = dict(graph.arrivals)
    ticket = itertools.count()
    ready = [(-sequence_number(n), next(ticket), n) for n in {n for n, _ in graph.roots} if not waiting.get(n)]
    heapq.heapify(ready)
    order = []
    while ready:
        _, _, node = heapq.heappop(ready)
        if node in graph.wanted:
            order.append(node)
        for child, _ in graph.children[node]:
            waiting[child] -= 1
            if not waiting[child]:
                place = -1 << 62 if graph.names[child] == LEAF else -sequence_number(child)
                heapq.heappush(ready, (place, next(ticket), child))
    return order
