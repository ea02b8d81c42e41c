"""Rows of J by plain backward passes, one per loss: nodes are called by hand, with one row at a time.

Hooks are not run, nothing is added to `.grad` and nothing is retained, as in a walk; a graph with hooks is walked. What
the engine does around a node is done here: missing outputs, sums down to a shape, casts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from gramjd.engine import _torch, autograd
from gramjd.engine.graph import LEAF, Graph, Metadata
from gramjd.engine.structure import Place, Structure
from gramjd.engine.survey import Survey

# The row of one loss by input; an input without an entry has a row of zeros.
Row = dict[Place, Tensor]


class Way(NamedTuple):
    """An edge that a row goes along: from which one of a node, to which output of another, as what.

    `outputs`: how many that other node has; 0 for a leaf, where the row ends.
    """

    at: int
    place: Place
    outputs: int
    meta: Metadata


class Stop(NamedTuple):
    """A node that a row visits: its number, how many outputs it has, which of them are inputs of interest."""

    n: int
    outputs: int
    inputs: tuple[Place, ...]
    ways: tuple[Way, ...]


def course_of(survey: Survey, i: int) -> tuple[Stop, ...]:
    """The nodes that the row of loss i visits, in their order, but for leaves."""
    if i not in survey.courses:
        structure, start = survey.structure, survey.starts[i][2][0]
        survey.courses[i] = tuple(
            _stop(structure, n)
            for n in structure.order
            if survey.reached[n] >> i & 1 and (structure.names[n] != LEAF or n == start)
        )
    found: tuple[Stop, ...] = survey.courses[i]
    return found


def _stop(structure: Structure, n: int) -> Stop:
    outputs = structure.outputs[n]
    ways = [
        Way(at, place, _outputs(structure, place[0]), structure.outputs[place[0]][place[1]])
        for at, place in enumerate(structure.targets[n])
        if place is not None
    ]
    inputs = tuple((n, nr) for nr in range(len(outputs)) if (n, nr) in structure.places)
    return Stop(n, len(outputs), inputs, tuple(ways))


def _outputs(structure: Structure, n: int) -> int:
    """The outputs of a node, 0 for a leaf of interest."""
    return 0 if structure.names[n] == LEAF and (n, 0) in structure.places else len(structure.outputs[n])


def run(graph: Graph, losses: Sequence[Tensor], survey: Survey, take: Callable[[int, Row], None]) -> None:
    """Hand each loss and its row to `take`, in their order.

    One backward pass is all around them, or one around each where tensors are brought back when they are read: a
    checkpointed segment is recomputed once in a pass. That may be found out on the way, so `take` may be called for a
    loss again, with the same row.
    """
    if not survey.recomputes:
        try:
            autograd.in_graph_task(partial(_passes, graph, losses, survey, take, range(survey.m)))
        except CheckpointError:
            survey.recomputes = True
        else:
            return
    for i in range(survey.m):
        autograd.in_graph_task(partial(_passes, graph, losses, survey, take, (i,)))


def _passes(
    graph: Graph, losses: Sequence[Tensor], survey: Survey, take: Callable[[int, Row], None], which: Iterable[int]
) -> None:
    for i in which:
        found: Row = {}
        at, k, place = survey.starts[i]
        meta = survey.structure.outputs[place[0]]
        if meta:
            _pass(graph, course_of(survey, i), place, _one(meta[place[1]], k, losses[at].device), found)
        take(i, found)


def _one(meta: Metadata, k: int, device: torch.device) -> Tensor:
    """Zeros but for element k; ones for what has one element."""
    if k < 0 or math.prod(meta.shape) == 1:
        return torch.ones(meta.shape, dtype=meta.dtype, device=device)
    seed = torch.zeros(meta.shape, dtype=meta.dtype, device=device)
    seed.view(-1)[k] = 1
    return seed


def _pass(graph: Graph, course: Sequence[Stop], start: Place, seed: Tensor, found: Row) -> None:
    """Note in `found` what arrives at the inputs. Called for each loss, on graphs so small that a line counts."""
    nodes, strided = graph.nodes, torch.strided
    box: dict[int, Any] = {}
    _put(box, start, len(graph.structure.outputs[start[0]]), seed)
    for n, outputs, inputs, ways in course:
        given = box.pop(n, None)
        if given is None:
            continue
        for place in inputs:
            value = given if outputs == 1 else given[place[1]]
            if value is not None:
                found[place] = value
        if not ways:
            continue
        node = nodes[n]
        out: Any
        if isinstance(node, _torch.PythonNode):
            out = autograd.called(node, [given] if outputs == 1 else given)
        else:
            out = node(given) if outputs == 1 else node(*given)
        several = type(out) is tuple
        for at, goal, width, meta in ways:
            value = out[at] if several else out
            if value is None:
                continue
            if value.shape != meta.shape or value.dtype is not meta.dtype or value.layout is not strided:
                value = _fitted(value, meta)
            if not width:
                known = found.get(goal)
                found[goal] = value if known is None else known + value
            elif width == 1 and goal[0] not in box:
                box[goal[0]] = value
            else:
                _put(box, goal, width, value)


def _put(box: dict[int, Any], place: Place, outputs: int, value: Tensor) -> None:
    """Add a gradient to what arrived at an output of a node."""
    n, nr = place
    if outputs == 1:
        known = box.get(n)
        box[n] = value if known is None else known + value
        return
    queue = box.setdefault(n, [None] * outputs)
    queue[nr] = value if queue[nr] is None else queue[nr] + value


def _fitted(value: Tensor, meta: Metadata) -> Tensor:
    """What the engine makes of a gradient for an output of this shape and dtype."""
    if value.layout != torch.strided:
        value = value.to_dense()
    if value.shape != meta.shape:
        value = value.sum_to_size(meta.shape)
    if value.is_complex() and not meta.dtype.is_complex:
        value = value.real
    return value if value.dtype is meta.dtype else value.to(meta.dtype)
