"""Hooks: functions of users that change gradients on their way.

A hook sees one whole gradient, so it must be given one row at a time. The autograd engine runs it: asked for the
gradient of an edge with respect to itself, it returns what the hooks of that tensor make of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from gramjd.engine.graph import LEAF, Edge, Graph, Metadata, Node
from gramjd.engine.task import by_engine, run_backward
from gramjd.errors import GraphError


@dataclass
class Hooks:
    """Edges whose tensor has a hook, and nodes that have one themselves (as modules with backward hooks make)."""

    edges: set[Edge] = field(default_factory=set)
    nodes: set[Node] = field(default_factory=set)


def find(graph: Graph) -> Hooks:
    """All hooks between the losses and the inputs."""
    hooks = Hooks()
    if not _any_registered():
        return hooks
    zeros: dict[Metadata, Tensor] = {}
    for node in graph.wanted:
        if graph.names[node] == LEAF:
            if node.variable._backward_hooks:
                hooks.edges.add((node, 0))
            continue
        if _has_own(node):
            hooks.nodes.add(node)
        for nr, meta in enumerate(graph.metadata(node)):
            if meta not in zeros:
                zeros[meta] = torch.zeros((), dtype=meta.dtype, device=meta.device).expand(meta.shape)
            if _changes((node, nr), zeros[meta]):
                hooks.edges.add((node, nr))
    return hooks


def _any_registered() -> bool:
    """Whether anything in this process ever registered a hook: each is handed a numbered handle."""
    return RemovableHandle.next_id > 0


def on_accumulation(graph: Graph) -> set[Node]:
    """Leaves with a hook on the node that adds to their `.grad`, which only a backward pass runs."""
    leaves = {node for node, _ in graph.targets if graph.names[node] == LEAF}
    return {node for node in leaves if _has_own(node)} if _any_registered() else set()


def _has_own(node: Node) -> bool:
    """Whether hooks were registered on the node: the registry is only seen by entering it."""
    for register in (node.register_hook, node.register_prehook):
        handle = register(_nothing)
        entries = handle.hooks_dict_ref()
        handle.remove()
        if entries:
            return True
    return False


def _nothing(*_: Any) -> None:
    """A hook that changes nothing."""


def _changes(edge: Edge, zero: Tensor) -> bool:
    place = (GradientEdge(*edge),)
    try:
        return run_backward(place, (zero,), True, False, place, True, False)[0] is not zero
    except RuntimeError:
        # A hook that writes in place cannot write to the shared zero.
        return True


def at_edge(edge: Edge, values: Tensor) -> Tensor:
    """What the hooks of a tensor make of stacked rows."""
    rows = [by_engine([edge], [row], [edge])[0] for row in values.clone()]
    return torch.stack([values[k] if row is None else row for k, row in enumerate(rows)])


def through_node(graph: Graph, hooks: Hooks, node: Node, values: list[Tensor | None]) -> list[Tensor | None]:
    """A node with hooks of its own, run by the engine for each of the stacked rows."""
    children = [(child, nr) for child, nr in node.next_functions if child is not None]
    for child in children:
        if child in hooks.edges:
            raise GraphError(
                f"{node.name()} has a hook of its own and so has a tensor it was computed from: their order cannot be "
                "kept for stacked rows; register only one of them"
            )
    given = [nr for nr, value in enumerate(values) if value is not None]
    stacked = next(value for value in values if value is not None)
    outputs = [(node, nr) for nr in given]
    rows = []
    for k in range(len(stacked)):
        mine = [value[k].clone() for value in values if value is not None]
        rows.append(by_engine(outputs, mine, children))
    columns = iter(zip(*rows, strict=True))
    out: list[Tensor | None] = []
    for child, _ in node.next_functions:
        column = None if child is None else next(columns)
        found = None if column is None else [row for row in column if row is not None]
        out.append(torch.stack(found) if found and len(found) == len(rows) else None)
    return out
