"""Using the autograd engine: running code as part of a backward pass, or a part of the graph as the engine does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.autograd.variable import Variable

from gramjd.engine.graph import LEAF, Edge, Graph, edge_of

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
# The engine itself: `torch.autograd.grad` without its checks, which cost more than the small graphs this is used for.
run_backward = Variable._execution_engine.run_backward


def plainly() -> contextlib.ExitStack:
    """Without a graph, and without autocast: sums are accumulated in float32 at least, wherever a walk is begun."""
    stack = contextlib.ExitStack()
    stack.enter_context(torch.no_grad())
    for device in _AUTOCAST:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack


class _InGraphTask(torch.autograd.Function):
    """Runs a function inside a backward pass, where checkpointed segments recompute once and not at every read."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor) -> Tensor:
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        with plainly():
            _here.functions.pop()()


class _Here(threading.local):
    """A graph of one node, for each thread one, and the functions that it is to run."""

    def __init__(self) -> None:
        self.functions: list[Callable[[], object]] = []
        self.cotangent = torch.ones((), dtype=torch.float32, device="cpu")

    @cached_property
    def end(self) -> Tensor:
        """The output of the node."""
        with torch.enable_grad():
            out: Tensor = _InGraphTask.apply(torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True))
        return out


def in_graph_task(function: Callable[[], object]) -> None:
    """Call `function` as part of a backward pass of its own."""
    _here.functions.append(function)
    # Without inputs: with some the engine would tell the nodes that nobody needs their results.
    # Keeping the graph: compiled modules ask the running pass whether they may free what they saved.
    run_backward((_here.end,), (_here.cotangent,), True, False, (), True, True)


_here = _Here()


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


# The identity, whose node hands on undefined gradients.
_nothing: Any = torch._C._functions.UndefinedGrad()


def release(graph: Graph, losses: Sequence[Tensor]) -> None:
    """Free what the part of the graph above the inputs saved, as a backward pass without `retain_graph` does.

    A pass that hands on undefined gradients computes nothing, and frees each node's tensors as it goes. Custom
    functions would be given zeros instead, hooks None, and what was checkpointed or moved elsewhere would be brought
    back: a graph with one of them is freed with the losses.
    """
    if graph.hooks.edges or graph.hooks.nodes or _runs_code(graph):
        return
    with torch.enable_grad():
        ends = [edge_of(_nothing(loss)) for loss in losses]
    leaves = [(node, 0) for node, _ in graph.targets if graph.names[node] == LEAF]
    # Nodes look at what they saved even then: one that was changed in place by now would raise.
    with contextlib.suppress(RuntimeError):
        by_engine(ends, [loss.detach() for loss in losses], leaves, keep_graph=False)


def _runs_code(graph: Graph) -> bool:
    """Whether a node is a custom function, or a hook brings back what it saved."""
    for node in graph.edges:
        kind: Any = type(node)
        names = _raw_saved(kind)
        if names is None:
            return True
        for name in names:
            for saved in _each(getattr(node, name)):
                if getattr(saved, "unpack_hook", None) is not None:
                    return True
    return False


@cache
def _raw_saved(kind: type) -> tuple[str, ...] | None:
    """Attributes through which a kind of node shows how it saved its tensors; None for custom functions."""
    if issubclass(kind, torch.autograd.function.BackwardCFunction):
        return None
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def _each(saved: Any) -> Iterable[Any]:
    return saved if isinstance(saved, (list, tuple)) else (saved,)
