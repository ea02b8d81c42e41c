"""Jacobians kept from the walk: the update `J^T w` from them, without a second backward pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gramjd.engine import _torch
from gramjd.engine.consumers.rows import Rows
from gramjd.engine.graph import LEAF, Edge, Graph
from gramjd.engine.hooks import on_accumulation
from gramjd.engine.parameter import Jacobian


class Kept:
    """The Jacobians of the leaves of interest, as long as they fit in `limit` bytes.

    Leaves that got nothing here (`missing`) need a backward pass: those that came too late for the limit, those with
    hooks on the node that accumulates their gradient, and all of them where hooks are in the way, which see one
    gradient in a backward pass but each row of it in the walk, or where an embedding asks for a sparse gradient.
    """

    def __init__(self, graph: Graph, targets: Sequence[Tensor] | None, limit: int) -> None:
        self.graph = graph
        self._wanted = None if targets is None else {id(t) for t in targets}
        self._hooked = on_accumulation(graph)
        self.limit = 0 if graph.hooks.edges or graph.hooks.nodes or sparse_gradients(graph) else limit
        self._held: dict[Edge, Jacobian] = {}
        # Leaves kept, in the order of their gradients.
        self.edges: list[Edge] = []
        self.nbytes = 0
        self._rows: Rows | None = None

    def take(self, rows: Rows) -> None:
        """Keep the rows that passes computed, instead of Jacobians from a walk."""
        if self.limit:
            self._rows = rows
            self.edges = [edge for edge in (*rows.kept, *rows.summed) if self.wants(edge)]

    def note(self, edge: Edge, jacobian: Jacobian) -> None:
        """Keep the Jacobian of an input, if it is a leaf whose `.grad` is wanted and there is room."""
        if self.wants(edge) and self.nbytes + jacobian.nbytes <= self.limit:
            self.nbytes += jacobian.nbytes
            self.edges.append(edge)
            self._held[edge] = jacobian

    def wants(self, edge: Edge) -> bool:
        """Returns True for a leaf whose `.grad` is wanted and whose accumulation has no hook."""
        wanted = self._wanted is None or id(self.graph.targets[edge]) in self._wanted
        return wanted and self.graph.names[edge[0]] == LEAF and edge[0] not in self._hooked

    def clear(self) -> None:
        """Keep nothing after all."""
        self._held.clear()
        self.edges.clear()
        self.limit = 0

    def missing(self, targets: Sequence[Tensor] | None) -> list[Tensor]:
        """Those of `targets` (None: all leaves) whose gradient cannot be formed from what was kept."""
        if targets is None:
            targets = [node.variable for node, name in self.graph.names.items() if name == LEAF]
        held = {id(self.graph.targets[edge]) for edge in self.edges}
        return [t for t in targets if id(t) not in held]

    def gradients(self, w: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each leaf kept with its `sum_r w_r J_r`; each Jacobian is dropped as it is used."""
        if self._rows is not None:
            return self._rows.gradients(w, self.edges)
        found = []
        for edge in self.edges:
            leaf = self.graph.targets[edge]
            found.append((leaf, self._held.pop(edge).combined(w).to(leaf.dtype).reshape(leaf.shape)))
        return found


def sparse_gradients(graph: Graph) -> bool:
    """Returns True if an embedding gives a sparse gradient."""
    tables = (node for node, name in graph.names.items() if "Embedding" in name and _torch.has_saved(node, "sparse"))
    return any(_torch.saved(node, "sparse") for node in tables)
