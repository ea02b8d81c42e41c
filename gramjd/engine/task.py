"""Using the autograd engine: running code as part of a backward pass, or a part of the graph as the engine does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.autograd.variable import Variable

from gramjd.engine.graph import LEAF, Edge, Graph, edge_of, is_python

# The engine itself: `torch.autograd.grad` without its checks, which cost more than the small graphs this is used for.
run_backward = Variable._execution_engine.run_backward


class _InGraphTask(torch.autograd.Function):
    """Runs a function inside a backward pass, where checkpointed segments recompute once and not at every read."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, function: Callable[[], None]) -> Tensor:
        ctx.function = function
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, None]:
        with torch.no_grad():
            ctx.function()
        return None, None


def in_graph_task(function: Callable[[], None]) -> None:
    """Call `function` as part of a backward pass of its own."""
    with torch.enable_grad():
        anchor = torch.zeros((), requires_grad=True)
        out = _InGraphTask.apply(anchor, function)
    # Without `inputs=`: with it the engine would tell the nodes that nobody needs their results.
    # Keeping the graph: compiled modules ask the running pass whether they may free what they saved.
    torch.autograd.backward(out, retain_graph=True)


def by_engine(
    outputs: Sequence[Edge], cotangents: Sequence[Tensor], inputs: Sequence[Edge], keep_graph: bool = True
) -> tuple[Tensor | None, ...]:
    """Gradients of `inputs`, with everything that the engine does around a node: hooks, missing outputs, casts."""
    starts = tuple(GradientEdge(node, nr) for node, nr in outputs)
    ends = tuple(GradientEdge(node, nr) for node, nr in inputs)
    found: tuple[Tensor | None, ...] = run_backward(starts, tuple(cotangents), keep_graph, False, ends, True, False)
    return found


def accumulate(gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Add to the `.grad` of leaves as the engine does after a leaf's own hooks: in place where there is one already.

    A graph node that is called from Python would copy the gradient first, which costs as much as a small step.
    """
    with torch.no_grad():
        for leaf, gradient in gradients:
            if leaf.grad is not None:
                leaf.grad = leaf.grad.add_(gradient) if leaf.grad.layout == torch.strided else gradient + leaf.grad
            elif gradient.stride() == leaf.stride():
                leaf.grad = gradient
            else:
                leaf.grad = torch.empty_like(leaf).copy_(gradient)
            for hook in (leaf._post_accumulate_grad_hooks or {}).values():
                hook(leaf)


class _Nothing(torch.autograd.Function):
    """Sends no gradient at all to its arguments."""

    @staticmethod
    def forward(ctx: Any, *losses: Tensor) -> Tensor:
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)


def release(graph: Graph, losses: Sequence[Tensor]) -> None:
    """Free what the graph of the losses saved, as a backward pass without `retain_graph` does.

    A pass that hands on undefined gradients computes nothing, and frees each node's tensors as it goes. Custom
    functions would be given zeros instead, and hooks None: a graph with one of them is freed with the losses.
    """
    if graph.hooks.edges or graph.hooks.nodes or any(is_python(node) for node in graph.children):
        return
    with torch.enable_grad():
        out = _Nothing.apply(*losses)
    leaves = [(node, 0) for node in graph.children if graph.name(node) == LEAF]
    by_engine([edge_of(out)], [torch.ones_like(out)], leaves, keep_graph=False)
