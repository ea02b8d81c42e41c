"""Everything that calls autograd: nodes by hand, code inside a backward pass, adding to `.grad`, freeing a graph."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.checkpoint import CheckpointError

from gramjd.engine import _torch
from gramjd.engine._torch import Node, is_python, needs_gradient, run_python
from gramjd.engine.graph import LEAF, Edge, Graph, edge_of

AUTOCAST = ("cpu", "cuda", "mps", "xpu")


def casts() -> list[tuple[str, torch.dtype]]:
    """The devices under autocast, each with the type that is cast to."""
    return [(device, torch.get_autocast_dtype(device)) for device in AUTOCAST if torch.is_autocast_enabled(device)]


def under(given: Sequence[tuple[str, torch.dtype]]) -> contextlib.ExitStack:
    """Under these casts, as `casts` gave them, and no others."""
    stack = contextlib.ExitStack()
    for device, dtype in given:
        stack.enter_context(torch.autocast(device, dtype))
    for device, _ in casts():
        if device not in dict(given):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack


def plainly() -> contextlib.ExitStack:
    """Without a graph, and without autocast: sums are accumulated in float32 at least, wherever a walk is begun."""
    stack = contextlib.ExitStack()
    stack.enter_context(torch.no_grad())
    if _torch.mutation_is_watched():
        stack.enter_context(_OwnOutputs())
    for device in AUTOCAST:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack


class _OwnOutputs(_torch.TorchDispatchMode):
    """Where torch allows edits of what was saved, its mode takes it that what an operation writes to is called `out`.

    Our operations that write to another argument write to memory of our own: that mode need not see them.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        other = any(argument.is_out and argument.name != "out" for argument in _torch.schema_of(func).arguments)
        with _torch.untraced() if other else contextlib.nullcontext():
            return func(*args, **kwargs or {})


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
        with _torch.untraced():  # a mode that is active now may be gone the next time
            self.cotangent = torch.ones((), dtype=torch.float32, device="cpu")

    @cached_property
    def end(self) -> Tensor:
        """The output of the node."""
        with _torch.untraced(), torch.enable_grad():
            out: Tensor = _InGraphTask.apply(torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True))
        return out


def in_graph_task(function: Callable[[], object]) -> None:
    """Call `function` as part of a backward pass of its own.

    What it raises is raised again outside: in anomaly mode the engine would say that our own node failed.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            function()
        except Exception as error:
            raised.append(error)

    _here.functions.append(run)
    # Without inputs: with some the engine would tell the nodes that nobody needs their results.
    # Keeping the graph: compiled modules ask the running pass whether they may free what they saved.
    _torch.run_backward((_here.end,), (_here.cotangent,), (), True, accumulate=True)
    if raised:
        raise raised.pop()


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


def add_to_grad(gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
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


# -- calling a node -------------------------------------------------------------------------------------------------

# torch's own batching rules give wrong numbers for these; rows are computed one by one.
WRONG_UNDER_VMAP = {"CdistBackward0"}
Gradients = tuple[Tensor | None, ...]


def direct(node: Node, values: Sequence[Tensor | None]) -> Gradients:
    """The node's backward, called as it is."""
    return _tuple(node(*values))


def pull(node: Node, values: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The node's backward for K stacked cotangents: directly, vectorised by vmap, or one by one."""
    stacked = next(len(v) for v in values if v is not None)
    if stacked > 1 and not is_python(node) and node.name() not in WRONG_UNDER_VMAP:
        # What vmap cannot batch fails in many ways; an error of the node itself comes again below.
        with contextlib.suppress(RuntimeError):
            return _vmapped(node, values)
    rows = [called(node, [None if v is None else v[k] for v in values]) for k in range(stacked)]
    if stacked == 1:
        return [None if g is None else g.unsqueeze(0) for g in rows[0]]
    return [_stacked_column(column) for column in zip(*rows, strict=True)]


def called(node: Node, cotangents: Sequence[Tensor | None]) -> Gradients:
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
