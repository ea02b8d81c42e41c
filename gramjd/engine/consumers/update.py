"""Rows kept from the walk: the update `J^T w` from them, without a second backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gramjd.engine import _torch
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.factor import Factor
from gramjd.engine.graph import LEAF, Edge, Graph
from gramjd.engine.hooks import on_accumulation
from gramjd.engine.layout import Rows, placed


class Kept:
    """What arrived at the leaves of interest, as long as it fits in `limit` bytes.

    Leaves that got nothing here (`missing`) need a backward pass: those that came too late for the limit, those with
    hooks on the node that accumulates their gradient, and all of them where hooks are in the way, which see one
    gradient in a backward pass but each row of it in the walk, or where an embedding asks for a sparse gradient.
    """

    def __init__(self, graph: Graph, targets: Sequence[Tensor] | None, limit: int) -> None:  # noqa: D107
        self.graph = graph
        self._wanted = None if targets is None else {id(t) for t in targets}
        self._hooked = on_accumulation(graph)
        self.limit = 0 if graph.hooks.edges or graph.hooks.nodes or _sparse(graph) else limit
        self._held: dict[Edge, tuple[list[Cotangent], list[Factor]]] = {}
        # Leaves kept, in the order in which `combine` gives their gradients.
        self.edges: list[Edge] = []
        self.combine = self._combine_rows
        self.nbytes = 0

    def note(self, edge: Edge, groups: list[Cotangent], factors: list[Factor]) -> None:
        """Keep what arrived at an input, if it is a leaf whose `.grad` is wanted and there is room."""
        if not self.wants(edge):
            return
        nbytes = sum(g.values.nbytes for g in groups) + sum(f.nbytes for f in factors)
        if self.nbytes + nbytes <= self.limit:
            self.nbytes += nbytes
            self.edges.append(edge)
            self._held[edge] = (groups, factors)

    def wants(self, edge: Edge) -> bool:
        """Whether an input is a leaf whose `.grad` is wanted, and nobody hooked into its accumulation."""
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
        """Each leaf kept with its `sum_r w_r J_r`; what was kept is dropped. Some may be missing from then on."""
        found = self.combine(w)
        return [(self.graph.targets[edge], gradient) for edge, gradient in zip(self.edges, found, strict=True)]

    def _combine_rows(self, w: Tensor) -> list[Tensor]:
        found = []
        for edge in self.edges:
            groups, factors = self._held.pop(edge)
            leaf = self.graph.targets[edge]
            shares = [weighted_group(g, w) for g in groups] + [weighted_factor(f, w) for f in factors]
            found.append(sum(shares[1:], shares[0]).to(leaf.dtype).reshape(leaf.shape))
        return found


def _sparse(graph: Graph) -> bool:
    """Returns True if an embedding gives a sparse gradient."""
    tables = (node for node, name in graph.names.items() if "Embedding" in name and _torch.has_saved(node, "sparse"))
    return any(_torch.saved(node, "sparse") for node in tables)


def weighted_factor(factor: Factor, w: Tensor) -> Tensor:
    """`sum_r w_r J_r` of a factor, shaped like the parameter."""
    total = factor.weighted(_weights_of(factor.rows, w))
    return factor.back(total.unsqueeze(0))[0]


def weighted_group(group: Cotangent, w: Tensor) -> Tensor:
    """`sum_r w_r J_r` of rows with a layout, shaped like the parameter."""
    layout, values = group.layout, group.values
    shape = [layout.stacked, *(p.size if p.diagonal else 1 for p in layout.pieces)]
    weights = _weights_of(layout.rows, w).to(values.dtype).view(shape)
    split = values.reshape(layout.stacked, *(p.size for p in layout.pieces))
    if not layout.diagonal:
        flat = weights.reshape(-1) @ split.reshape(layout.stacked, math.prod(group.shape))
        return flat.view(group.shape)
    return (weights * split).sum(0).view(group.shape)


def _weights_of(rows: Rows, w: Tensor) -> Tensor:
    """The weight of each row's loss, zero for those of none."""
    if rows.size == len(w) and (rows.reshape(-1) == np.arange(len(w))).all():
        return w.view(rows.shape)
    weights = w.index_select(0, placed(np.where(rows >= 0, rows, 0).reshape(-1), w.device)).view(rows.shape)
    return weights if (rows >= 0).all() else weights * placed(rows >= 0, w.device)
