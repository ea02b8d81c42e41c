"""What a graph of one structure asks of each way to its Gramian: which losses reach a node, and how much work that is.

There are two ways. A walk visits every node once, with the rows of all losses. Passes call every node once for each
loss that reaches it, by hand, with a single row: m plain backward passes. A visit costs some ten times as much as a
call, whatever the node's size, so a few losses on a small model are quicker by passes; a walk is quicker where all
losses fit into one batch axis, and where the products of large layers need no rows.

A survey is made once per structure, from a walk that computes nothing, and kept with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import _torch
from gramjd.engine.autograd import in_graph_task
from gramjd.engine.factor import Factor
from gramjd.engine.graph import Edge, Graph
from gramjd.engine.memory import NO_LIMITS, Meter
from gramjd.engine.node import Message
from gramjd.engine.parameter import Jacobian
from gramjd.engine.structure import Place, Structure
from gramjd.engine.walk import Walk, seeds_for

# Losses that are put together from others, each of one element: an edge for each.
PUT_TOGETHER = {"StackBackward0", "CatBackward0"}
# Products by the edges of their two operands.
PRODUCTS = {"AddmmBackward0": (1, 2), "MmBackward0": (0, 1), "BmmBackward0": (0, 1), "BaddbmmBackward0": (1, 2)}


@dataclass
class Work:
    """What one row, or all of them, take: operations of products, elements that are moved."""

    operations: float = 0.0
    elements: float = 0.0

    def add(self, other: Work, times: float = 1.0) -> None:
        """Add another's."""
        self.operations += times * other.operations
        self.elements += times * other.elements


@dataclass
class Survey:
    """The losses that reach each node of a structure (bit i of `reached[n]`: loss i), and the work of both ways.

    `steady`: every graph of this structure has the same losses at each node, whatever numbers are in it, so `reached`
    says which losses an input belongs to. `walked` and `called` are the work of a walk and of all passes, without the
    products of the inputs' Jacobians; those are in `grams`, of a walk, by input. `own` is the work of all gradients of
    inputs for one loss. `recomputes`: a tensor that a node saved is brought back when it is read, which passes would do
    for each loss. `names` are those of all nodes, `code` those of custom functions.
    """

    structure: Structure
    m: int
    starts: list[tuple[int, int, Place]]
    reached: list[int]
    roots: set[int]
    steady: bool = True
    recomputes: bool = False
    names: frozenset[str] = frozenset()
    code: frozenset[str] = frozenset()
    walked: Work = field(default_factory=Work)
    called: Work = field(default_factory=Work)
    own: Work = field(default_factory=Work)
    grams: dict[Place, float] = field(default_factory=dict)
    # What follows from it, worked out once: see `passes`, `consumers.rows` and `choice`.
    courses: dict[int, Any] = field(default_factory=dict)
    blocks: dict[Any, Any] = field(default_factory=dict)
    seconds: dict[Any, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def apart(self) -> set[int]:
        """Nodes that put losses together, which no row visits."""
        return {n for n in self.roots if not self.reached[n]}

    @cached_property
    def calls(self) -> int:
        """Calls of nodes in all passes."""
        return sum(self.reached[n].bit_count() for n in self.structure.order)

    def losses_at(self, n: int) -> list[int]:
        """The losses that reach a node."""
        return [i for i in range(self.m) if self.reached[n] >> i & 1]


def survey_of(graph: Graph, losses: Sequence[Tensor]) -> Survey:
    """The survey of a graph's structure, found or made."""
    structure: Structure = graph.structure
    if structure.survey is None:
        structure.survey = _surveyed(graph, losses)
    found: Survey = structure.survey
    return found


def _surveyed(graph: Graph, losses: Sequence[Tensor]) -> Survey:
    m = sum(loss.numel() for loss in losses)
    starts = _starts(graph, losses)
    roots = {graph.number[node] for node, _ in graph.roots}
    survey = Survey(graph.structure, m, starts, _reached(graph.structure, starts), roots)
    survey.recomputes = any(_torch.unpacks_by_hook(node) for node in graph.visited)
    survey.names = frozenset(graph.names[node] for node in graph.visited)
    survey.code = frozenset(graph.names[node] for node in graph.visited if _torch.is_python(node))
    device, dtype = losses[0].device.type, torch.promote_types(losses[0].dtype, torch.float32)

    def note(edge: Edge, jacobian: Jacobian) -> None:
        found = sum(factor.plan(device, dtype)[1] for factor in jacobian.factors)
        survey.grams[graph.number[edge[0]], edge[1]] = found

    walk = _Surveying(graph, note, Meter(NO_LIMITS), computes=False, survey=survey)
    in_graph_task(lambda: walk.run(seeds_for(losses, computes=False)))
    for n in graph.structure.order:
        on, own = _row_of(graph.structure, n)
        survey.own.add(own)
        for part in (on, own):
            survey.called.add(part, survey.reached[n].bit_count())
    return survey


@dataclass
class _Surveying(Walk):
    """A walk that computes nothing, and notes what arrives where."""

    survey: Survey = None  # type: ignore[assignment]

    def _visit(self, n: int) -> None:
        survey, seen, rows, steady = self.survey, 0, 0, True
        for _, message in self._inbox[n]:
            seen |= _owners(message)
            if not isinstance(message, Factor):
                rows += message.layout.stacked
                steady &= not (message.layout.diagonal and message.layout.losses > 1)
        # Where losses were put together there is one slice per loss, and they go apart again.
        survey.steady &= n in survey.apart or (steady and seen == survey.reached[n])
        if rows:
            survey.walked.add(_row_of(self.graph.structure, n)[0], rows)
        super()._visit(n)


def _owners(message: Message) -> int:
    owners = message.owners if isinstance(message, Factor) else message.layout.owners
    return sum(1 << int(i) for i in np.unique(owners) if i >= 0)


# -- which losses reach what -------------------------------------------------------------------------------------------


def _starts(graph: Graph, losses: Sequence[Tensor]) -> list[tuple[int, int, Place]]:
    """For each loss: the tensor that it is in, its place there, and where its row begins.

    Where single losses were stacked, a row begins at the one that it is of.
    """
    starts: list[tuple[int, int, Place]] = []
    for at, (loss, (node, nr)) in enumerate(zip(losses, graph.roots, strict=True)):
        root = graph.number[node]
        edges = graph.structure.edges[root]
        apart = graph.structure.names[root] in PUT_TOGETHER and loss.ndim == 1 and len(edges) == loss.numel() > 1
        apart = apart and (root, nr) not in graph.structure.places
        for k in range(loss.numel()):
            place = edges[k] if apart else None
            starts.append((at, -1, place) if place is not None else (at, k, (root, nr)))
    return starts


def _reached(structure: Structure, starts: Sequence[tuple[int, int, Place]]) -> list[int]:
    """The losses that reach each node, as bits."""
    reached = [0] * len(structure.edges)
    for i, (_, _, (n, _)) in enumerate(starts):
        reached[n] |= 1 << i
    for n in structure.order:
        for _, child in structure.children[n]:
            reached[child] |= reached[n]
    return reached


# -- work --------------------------------------------------------------------------------------------------------------


def _row_of(structure: Structure, n: int) -> tuple[Work, Work]:
    """What one row takes at a node: on its way to other nodes, and for the inputs right behind it."""
    outputs, targets = structure.outputs[n], structure.targets[n]
    on, own = Work(), Work()
    if not any(targets):
        return on, own
    on.elements = sum(math.prod(meta.shape) for meta in outputs)
    each = _operations(structure, n)
    for at, meta in enumerate(structure.inputs[n]):
        if meta is None:
            continue
        part = own if structure.parametric[n][at] else on
        part.elements += math.prod(meta.shape)
        if at in each:
            part.operations += each[at]
    return on, own


def _operations(structure: Structure, n: int) -> dict[int, float]:
    """Floating-point operations of the gradient of each operand of a product."""
    name, inputs, out = structure.names[n], structure.inputs[n], structure.outputs[n][0].shape
    size = 2.0 * math.prod(out)
    if name in PRODUCTS:
        a, b = PRODUCTS[name]
        left, right = inputs[a], inputs[b]
        inner = left.shape[-1] if left is not None else right.shape[-2] if right is not None else 0
        return dict.fromkeys((a, b), size * inner)
    if name == "ConvolutionBackward0":
        data, kernel = inputs[0], inputs[1]
        # Without the kernel's shape: one of three by three.
        window = math.prod(kernel.shape[1:]) if kernel is not None else 9 * (data.shape[1] if data is not None else 0)
        return dict.fromkeys((0, 1), size * window)
    if "AttentionBackward" in name and inputs[0] is not None:
        *_, keys, _ = (inputs[1] or inputs[0]).shape
        return {0: 5 * size * keys}
    return {}
