"""`torch.compile(model, backend="gramjd")`: a compiled model whose layers stay visible to a walk.

Forward and backward pass are compiled by Inductor. The walk cannot look into those: where it meets the region, it makes
the region's forward pass again, uncompiled, from the inputs that were saved, and walks the layers of that. So what
arrives may have any layout, parameters may be used outside as well, and all consumers of a Jacobian work; the price is
that second forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.graph import get_gradient_edge

from gramjd.compiled import _compilers
from gramjd.engine import _torch
from gramjd.engine.autograd import casts, under
from gramjd.errors import FallbackWarning, warn
from gramjd.kernels.tracing import TraceError

Call = Callable[..., Sequence[Any]]


def backend(graph: fx.GraphModule, examples: Sequence[Any], *, compiler: str = "inductor") -> Call:
    """The backend that `torch.compile(model, backend="gramjd")` finds: called for each graph taken from a model.

    A graph whose forward pass cannot be made twice (it draws random numbers, or writes to its inputs, as batch norm
    does in training) stays as it is, and is walked like any uncompiled layers. A warning says so.

    Args:
        graph: of operations, as Dynamo wrote it down.
        examples: what the graph is given.
        compiler: the backend of `torch.compile` that compiles forward and backward pass.

    Returns:
        A function of what the graph is given.

    >>> import gramjd
    >>> from functools import partial
    >>> model = torch.nn.Linear(2, 1)
    >>> call = torch.compile(model, backend=partial(backend, compiler="aot_eager"))
    >>> gramjd.gramian(call(torch.eye(2)).squeeze(1))
    tensor([[2., 1.],
            [1., 2.]])
    """
    reason = _obstacle(graph)
    if reason:
        warn(f"a part of a model that torch.compile compiles for gramjd runs uncompiled: it {reason}", FallbackWarning)
        return graph.forward
    plain = copy.deepcopy(graph)
    compiled = _compilers.compiled_with_backward(graph, examples, compiler)

    def call(*inputs: Any) -> Sequence[Any]:
        if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
            found: Sequence[Any] = Region.apply(plain, compiled, *inputs)
            return found
        return compiled(*inputs)

    return call


class Region(torch.autograd.Function):
    """A compiled function of tensors and numbers as one node.

    `layers` compute the same uncompiled, for the rule of this node. What the compiled backward pass saved hangs on
    `edges`.
    """

    @staticmethod
    def forward(ctx: Any, plain: fx.GraphModule, compiled: Call, *inputs: Any) -> tuple[Any, ...]:
        """The outputs of `compiled(*inputs)`."""
        needed = ctx.needs_input_grad[2:]
        leaves = [t.detach().requires_grad_() if need else t for t, need in zip(inputs, needed, strict=True)]
        with torch.enable_grad():
            outputs = compiled(*leaves)
        ctx.layers = Layers(plain, inputs)
        ctx.save_for_backward(*[t for t in inputs if isinstance(t, Tensor)])
        ctx.leaves = {2 + n: leaf for n, (leaf, need) in enumerate(zip(leaves, needed, strict=True)) if need}
        ctx.edges = {n: get_gradient_edge(t) for n, t in enumerate(outputs) if _has_graph(t)}
        found = [t.detach() if isinstance(t, Tensor) else t for t in outputs]
        constant = [t for n, t in enumerate(found) if isinstance(t, Tensor) and n not in ctx.edges]
        ctx.mark_non_differentiable(*constant)
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        """The gradients of the inputs, by the compiled backward pass; uncompiled if they are differentiated again."""
        tensors = ctx.saved_tensors  # says so if the graph was freed, or an input was written to
        given = {n: c for n, c in enumerate(cotangents) if c is not None and n in ctx.edges}
        if torch.is_grad_enabled():
            outputs, inputs = ctx.layers(tensors), ctx.layers.all_of(tensors)
            leaves, ends = {n: inputs[n - 2] for n in ctx.leaves}, [outputs[n] for n in given]
        else:
            leaves, ends = ctx.leaves, [ctx.edges[n] for n in given]
        found: list[Any] = [None] * len(ctx.needs_input_grad)
        if given:
            gradients = _compilers.gradients_of_compiled(ends, list(leaves.values()), list(given.values()))
            for n, gradient in zip(leaves, gradients, strict=True):
                found[n] = gradient
        return tuple(found)


def _has_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


class Layers:
    """What a region computes, uncompiled, as under the settings of its forward pass: a function of its tensors.

    Args:
        graph: of operations.
        inputs: of the region, of which those that are no tensors stay as they are.
    """

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self.graph, self.casts = graph, casts()
        self.numbers = [None if isinstance(t, Tensor) else t for t in inputs]

    def all_of(self, tensors: Sequence[Tensor | None]) -> list[Any]:
        """All inputs, with these tensors among them."""
        left = iter(tensors)
        return [next(left) if number is None else number for number in self.numbers]

    def __call__(self, tensors: Sequence[Tensor | None]) -> Sequence[Any]:
        """The outputs."""
        with under(self.casts):
            found: Sequence[Any] = self.graph(*self.all_of(tensors))
        return found


def _obstacle(graph: fx.GraphModule) -> str:
    """The reason why a forward pass cannot be made twice, or an empty string."""
    inputs = [node.meta.get("example_value") for node in graph.graph.nodes if node.op == "placeholder"]
    watch = _Watch([t for t in inputs if isinstance(t, Tensor)])
    try:
        with _compilers.fake_mode_of(inputs), torch.no_grad(), watch:
            outputs = graph(*inputs)
    except TraceError as error:
        return str(error)
    shared = any(isinstance(t, Tensor) and _torch.storage_of(t) in watch.memory for t in _torch.tree_leaves(outputs))
    return "returns a part of one of its inputs" if shared else ""


class _Watch(_torch.TorchDispatchMode):
    """Raises TraceError for operations that draw random numbers, or write to the memory of an input."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.memory = {_torch.storage_of(t) for t in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _compilers.draws(func, args, kwargs or {}):
            raise TraceError(f"draws random numbers ({func})")
        given = _compilers.arguments_of(func, args, kwargs or {})
        written = [t for t, writes in given if writes]
        if any(isinstance(t, Tensor) and _torch.storage_of(t) in self.memory for t in _torch.tree_leaves(written)):
            raise TraceError(f"writes to one of its inputs ({func})")
        return func(*args, **(kwargs or {}))
