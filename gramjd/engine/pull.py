"""Calling a backward node outside the autograd engine, for one cotangent or for stacked rows."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from gramjd.engine import record
from gramjd.engine._torch import Node, is_python, needs_gradient, run_python
from gramjd.engine.task import by_engine, in_graph_task

# torch's own batching rules give wrong numbers for these; rows are computed one by one.
WRONG_UNDER_VMAP = {"CdistBackward0"}
Gradients = tuple[Tensor | None, ...]


def pull(node: Node, values: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The node's backward for K stacked cotangents: directly, vectorised by vmap, or one by one."""
    found: list[Tensor | None] = record.call(node, _pull, values)
    return found


def direct(node: Node, values: Sequence[Tensor | None]) -> Gradients:
    """The node's backward, called as it is."""
    found: Gradients = record.call(node, _direct, values)
    return found


def _direct(node: Node, values: Sequence[Tensor | None]) -> Gradients:
    return _tuple(node(*values))


def _pull(node: Node, values: Sequence[Tensor | None]) -> list[Tensor | None]:
    stacked = next(len(v) for v in values if v is not None)
    if stacked > 1 and not is_python(node) and node.name() not in WRONG_UNDER_VMAP:
        # What vmap cannot batch fails in many ways; an error of the node itself comes again below.
        with contextlib.suppress(RuntimeError):
            return _vmapped(node, values)
    rows = [_called(node, [None if v is None else v[k] for v in values]) for k in range(stacked)]
    if stacked == 1:
        return [None if g is None else g.unsqueeze(0) for g in rows[0]]
    return [_stacked_column(column) for column in zip(*rows, strict=True)]


def _called(node: Node, cotangents: Sequence[Tensor | None]) -> Gradients:
    """One gradient an edge of the node."""
    try:
        return _call(node, cotangents)
    except CheckpointError:
        # A second read of what a checkpointed segment saved needs a backward pass of its own.
        found: list[Gradients] = []
        in_graph_task(lambda: found.append(_call(node, cotangents)))
        return found[0]


def _call(node: Node, cotangents: Sequence[Tensor | None]) -> Gradients:
    return _call_python(node, cotangents) if is_python(node) else _tuple(node(*cotangents))


def _call_python(node: Node, cotangents: Sequence[Tensor | None]) -> Gradients:
    """A custom function: one gradient an argument, of which those of no tensor are left out.

    Whether missing cotangents are zeros or None to it, only the engine knows.
    """
    edges = node.next_functions
    given = [nr for nr, c in enumerate(cotangents) if c is not None]
    if len(given) < len(cotangents):
        children = [(child, nr) for child, nr in edges if child is not None]
        values = [c for c in cotangents if c is not None]
        found = iter(by_engine([(node, nr) for nr in given], values, children))
        return tuple(None if child is None else next(found) for child, _ in edges)
    gradients = _tuple(run_python(node, cotangents))
    if len(gradients) == len(edges):
        return gradients
    needed = iter([g for g, needs in zip(gradients, needs_gradient(node), strict=False) if needs])
    return tuple(None if child is None else next(needed, None) for child, _ in edges)


def _stacked_column(column: Sequence[Tensor | None]) -> Tensor | None:
    """One edge's gradients of all rows; a node may leave out what is zero."""
    given = [g for g in column if g is not None]
    if not given:
        return None
    strided = [g.to_dense() if g.layout != torch.strided else g for g in given]
    if len(given) == len(column):
        return torch.stack(strided)
    rest = iter(strided)
    return torch.stack([torch.zeros_like(strided[0]) if g is None else next(rest) for g in column])


def over_rows(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """A formula for one row's cotangent applied to stacked rows."""
    if len(values) == 1:
        return function(values[0]).unsqueeze(0)
    record.refuse("vmap")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.vmap(function)(values)


def _vmapped(node: Node, values: Sequence[Tensor | None]) -> list[Tensor | None]:
    present = [n for n, v in enumerate(values) if v is not None]
    given_values = [v for v in values if v is not None]
    defined: list[bool] = []

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        full: list[Tensor | None] = [None] * len(values)
        for n, g in zip(present, given, strict=True):
            full[n] = g
        out = _tuple(node(*full))
        defined[:] = [g is not None for g in out]
        return tuple(g for g in out if g is not None)

    with warnings.catch_warnings():
        # vmap warns where it loops inside; that is what would be done here otherwise.
        warnings.simplefilter("ignore")
        results = iter(torch.vmap(run, randomness="same")(*given_values))
    return [next(results) if there else None for there in defined]


def _tuple(out: Any) -> Gradients:
    return out if isinstance(out, tuple) else (out,)
