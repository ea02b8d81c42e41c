"""The ways to run a traced graph: as it is, compiled by Inductor, or launched as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from gramjd.engine import _torch

MODES = ("default", "reduce-overhead", "graph")
Runner = Callable[..., Sequence[Any]]


def as_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Runner:
    """The operations one by one, without autograd; needs no compiler."""
    found: Runner = graph.forward
    return found


def compiled(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Runner:
    """One compiled function. Where the graph draws random numbers, they are those of PyTorch's own operations."""
    random = any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in graph.graph.nodes)
    options = {"fallback_random": True} if random else {}
    return _torch.compiled_graph(graph, inputs, options)


RUNNERS = {"graph": as_graph, "default": compiled, "reduce-overhead": compiled}
