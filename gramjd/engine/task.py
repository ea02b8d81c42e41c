"""Using the autograd engine: running code as part of a backward pass, or a part of the graph as the engine does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gramjd.engine import _torch
from gramjd.engine.graph import LEAF, Edge, Graph, edge_of

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


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
    _torch.run_backward((_here.end,), (_here.cotangent,), (), True, accumulate=True)


_here = _Here()


class _OnDevice(torch.autograd.Function):
    """Runs a function in the thread in which the engine runs the nodes of a device."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, function: Callable[[], object]) -> Tensor:
        ctx.function = function
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, None]:
        ctx.function()
        return None, None


def on_device(device: torch.device, function: Callable[[], object]) -> None:
    """Call `function` in the thread that runs the nodes of `device`: for a CPU the caller's own."""
    if device.type in ("cpu", "meta"):
        function()
        return
    with torch.inference_mode(False), torch.enable_grad():
        end = _OnDevice.apply(torch.zeros((), device=device, requires_grad=True), function)
    _torch.run_backward((end,), (torch.ones((), device=device),), (), True, accumulate=True)


def by_engine(
    outputs: Sequence[Edge], cotangents: Sequence[Tensor], inputs: Sequence[Edge], keep_graph: bool = True
) -> tuple[Tensor | None, ...]:
    """Gradients of `inputs`, with everything that the engine does around a node: hooks, missing outputs, casts."""
    starts = tuple(GradientEdge(node, nr) for node, nr in outputs)
    ends = tuple(GradientEdge(node, nr) for node, nr in inputs)
    return _torch.run_backward(starts, cotangents, ends, keep_graph)


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
            for hook in _torch.accumulated_hooks(leaf):
                hook(leaf)


# The identity, whose node hands on undefined gradients.
_nothing = _torch.undefined_gradients()


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
    """Returns True if a node is a custom function, or a hook brings back what it saved."""
    return any(_torch.is_python(node) or _torch.unpacks_by_hook(node) for node in graph.edges)
