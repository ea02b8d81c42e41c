"""Hooks: functions of users that change gradients on their way.

A hook sees one whole gradient, so it must be given one row at a time. The autograd engine runs it: asked for the
gradient of an edge with respect to itself, it returns what the hooks of that tensor make of it.

Hooks are found by their presence: none is run to find out what it would do. PyTorch does not list them, so the
engine is asked to run those of an edge, and the first call of a Python function that is not our own ends the run
before that function has begun. Only a hook written in C (`list.append`, `torch.nan_to_num`) is run, with zeros.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gramjd.engine import _fsdp, _torch
from gramjd.engine.autograd import by_engine, on_device
from gramjd.engine.graph import FSDP, LEAF, Edge, Graph, Metadata, Node
from gramjd.errors import GraphError


@dataclass
class Hooks:
    """Edges whose tensor has a hook, and nodes that have one themselves (as modules with backward hooks make).

    `gathers`: edges at which sharded modules gather their parameters, by a hook that changes nothing.
    """

    edges: set[Edge] = field(default_factory=set)
    nodes: set[Node] = field(default_factory=set)
    gathers: dict[Edge, list[_fsdp.State]] = field(default_factory=dict)


class _Last(threading.local):
    """The last search of a thread: hooks in the process until then, its last node, leaves whose nodes had no hook."""

    handles = -1
    sequence = 0
    leaves: frozenset[int] = frozenset()


_last = _Last()


def find(graph: Graph) -> Hooks:
    """All hooks between the losses and the inputs.

    A hook on an activation is younger than the activation. So where no hook was registered in this process since the
    last search of this thread, a graph that this thread has made since then has none, and nothing is searched.
    """
    hooks = Hooks()
    handles = _torch.foreign_handles()
    if not handles:
        return hooks
    for node, _ in graph.targets:
        if graph.names.get(node) == LEAF and _torch.leaf_hooks(node.variable):
            hooks.edges.add((node, 0))
    inner = [node for node in graph.visited if graph.names[node] != LEAF]
    fresh = all(_torch.sequence_number(node) > _last.sequence for node in inner)
    if not (fresh and handles == _last.handles):
        _search(graph, inner, hooks)
        _last.leaves = frozenset()
    _last.handles, _last.sequence = handles, _sequence_now()
    return hooks


def _sequence_now() -> int:
    """The number of a node that this thread makes now."""
    with torch.inference_mode(False), torch.enable_grad():
        return _torch.sequence_number(_anchor.clone().grad_fn)


_anchor = torch.zeros((), device="cpu", dtype=torch.float32, requires_grad=True)


def on_accumulation(graph: Graph) -> set[Node]:
    """Leaves with a hook on the node that adds to their `.grad`, which only a backward pass runs."""
    handles = _torch.foreign_handles()
    if not handles:
        return set()
    known = _last.leaves if handles == _last.handles else frozenset()
    leaves = {node for node, _ in graph.targets if graph.names[node] == LEAF}
    found = {node for node in leaves if id(node.variable) not in known and _torch.has_own_hooks(node)}
    _last.leaves = frozenset(id(node.variable) for node in leaves - found)
    return found


# -- the search -------------------------------------------------------------------------------------------------------


class _StopError(Exception):
    """Ends a run of the engine: with the frame of a Python function that was about to be called, or at the end."""

    def __init__(self, frame: Any = None) -> None:
        super().__init__()
        self.frame = frame


def _search(graph: Graph, nodes: Sequence[Node], hooks: Hooks) -> None:
    edges: dict[Any, list[Edge]] = {}
    for node in nodes:
        if _torch.has_own_hooks(node):
            hooks.nodes.add(node)
        for nr in graph.used[node]:
            edges.setdefault(graph.metadata(node)[nr].device, []).append((node, nr))
    with _fsdp.quiet(graph.sharded.states if graph.sharded else ()):
        for device, there in edges.items():
            # Hooks run in the thread of the device, which is the one that has to watch them.
            on_device(device, _Probe(graph, there, hooks))


class _Uncollected:
    """Within a block, in any thread, the garbage collector does not begin by itself."""

    def __init__(self) -> None:
        self._lock, self._blocks, self._was = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if not self._blocks:
                self._was = gc.isenabled()
                gc.disable()
            self._blocks += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks and self._was:
                gc.enable()


_uncollected = _Uncollected()


class _Probe:
    """Looks for the hooks of edges on one device."""

    def __init__(self, graph: Graph, edges: Sequence[Edge], hooks: Hooks) -> None:
        self.graph, self.edges, self.hooks = graph, edges, hooks
        self.zeros: dict[Metadata, Tensor] = {}
        self.expected, self.unchanged = torch.empty(0), False
        self.gathering: list[_fsdp.State] = []

    def end(self, gradient: Tensor) -> None:
        """The last hook of an edge."""
        self.unchanged = gradient is self.expected
        raise _StopError

    def watch(self, frame: Any, event: str, argument: Any) -> None:
        """Called by Python before a function begins: those that the engine calls are hooks."""
        by_engine = frame.f_back is not None and frame.f_back.f_code is _torch.run_backward.__code__
        if not by_engine or frame.f_code is _Probe.end.__code__ or _is_collecting(frame):
            return
        state = _fsdp.state_of_hook(frame) if self.graph.sharded else None
        if state is None:
            raise _StopError(frame)
        self.gathering.append(state)  # it does nothing now, so that hooks behind it are found

    def __call__(self) -> None:
        """Note the edges that have a hook."""
        before = sys.gettrace()
        with _uncollected:  # so that no finalizer is called, and stopped, in between
            for edge in self.edges:
                self.gathering = []
                if self._has_hook(edge, before):
                    self.hooks.edges.add(edge)
                if self.gathering:
                    self.hooks.gathers[edge] = self.gathering

    def _has_hook(self, edge: Edge, before: Any) -> bool:
        self.expected, self.unchanged = self._zero(edge), False
        # Hooks run in the order of their registration: ours comes last, and before the gradient would be retained.
        registry: dict[int, Callable[[Tensor], Any]] = {0: self.end}
        _torch.add_output_hooks(*edge, registry)
        starts, cotangents = _all_outputs(self.graph, edge, self.expected)
        place = (GradientEdge(*edge),)
        sys.settrace(self.watch)
        try:
            _torch.run_backward(starts, cotangents, place, True)
        except _StopError as stop:
            sys.settrace(before)
            _refuse_sharded(stop.frame)
            return not self.unchanged
        except Exception:
            # A hook written in C that cannot take zeros, such as one that writes in place.
            return True
        finally:
            sys.settrace(before)
            registry.clear()
        return True

    def _zero(self, edge: Edge) -> Tensor:
        meta = self.graph.metadata(edge[0])[edge[1]]
        if meta not in self.zeros:
            self.zeros[meta] = torch.zeros((), dtype=meta.dtype, device=meta.device).expand(meta.shape)
        return self.zeros[meta]


def _is_collecting(frame: Any) -> bool:
    """Returns True for a function that the garbage collector calls when it begins and ends."""
    return any(getattr(callback, "__code__", None) is frame.f_code for callback in gc.callbacks)


def _all_outputs(graph: Graph, edge: Edge, value: Tensor) -> tuple[list[GradientEdge], list[Tensor]]:
    """The used outputs of a node with a gradient for each: `value` for that of the edge, else zeros.

    The hooks of all outputs are run together, and few can take None for a gradient that is missing.
    """
    node, nr = edge
    metas = {k: graph.metadata(node)[k] for k in graph.used[node]}
    zeros = [value if k == nr else torch.zeros(m.shape, dtype=m.dtype, device=m.device) for k, m in metas.items()]
    return [GradientEdge(node, k) for k in metas], zeros


def _refuse_sharded(frame: Any) -> None:
    """Raise if a hook belongs to sharded training of a kind that a walk cannot follow."""
    if _fsdp.is_own(frame):
        raise GraphError(FSDP)


# -- running hooks ----------------------------------------------------------------------------------------------------


def at_edge(graph: Graph, edge: Edge, values: Tensor) -> Tensor:
    """What the hooks of a tensor make of stacked rows.

    A hook of our own behind theirs takes the row and ends the run, before `retain_grad` would keep the row.
    """
    place = (GradientEdge(*edge),)
    if graph.names[edge[0]] == LEAF:
        found = [_torch.run_backward(place, (given,), place, True)[0] for given in values.clone()]
        return torch.stack([row for row in found if row is not None])
    rows: list[Tensor] = []

    def take(row: Tensor) -> None:
        rows.append(row)
        raise _StopError

    registry: dict[int, Callable[[Tensor], Any]] = {0: take}
    _torch.add_output_hooks(*edge, registry)
    try:
        for row in values.clone():
            starts, cotangents = _all_outputs(graph, edge, row)
            with suppress(_StopError):
                _torch.run_backward(starts, cotangents, place, True)
    finally:
        registry.clear()
    return torch.stack(rows)


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
