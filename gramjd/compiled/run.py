"""The ways to run a traced graph: as it is, compiled by Inductor, or launched as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from gramjd.compiled import _compilers
from gramjd.compiled.check import undone

MODES = ("default", "reduce-overhead", "graph")
Runner = Callable[..., Sequence[Any]]


def draws(graph: fx.GraphModule) -> bool:
    """Returns True if random numbers are drawn."""
    return any(_compilers.draws(node.target, node.args, node.kwargs) for node in graph.graph.nodes)


def as_graph(graph: fx.GraphModule, inputs: Sequence[Tensor], held: int) -> Runner:
    """The operations one by one, without autograd; needs no compiler."""
    found: Runner = graph.forward
    return found


def compiled(graph: fx.GraphModule, inputs: Sequence[Tensor], held: int) -> Runner:
    """One compiled function. Random numbers are drawn from PyTorch's generator, in an order of its own."""
    # On a CPU the calls between kernels would take longer than small kernels do: they are compiled, too.
    options = {"cpp_wrapper": all(t.device.type == "cpu" for t in inputs), "fallback_random": draws(graph)}
    return _compilers.compiled_graph(graph, inputs, options)


def launched(graph: fx.GraphModule, inputs: Sequence[Tensor], held: int) -> Runner:
    """The compiled function recorded as a CUDA graph; on a CPU the compiled function."""
    run = compiled(graph, inputs, held)
    return Launched(run, held) if any(t.is_cuda for t in inputs) else run


# From a graph, example inputs, and how many of them are changed in their place, to what runs.
RUNNERS = {"graph": as_graph, "default": compiled, "reduce-overhead": launched}


class Launched:
    """A function of CUDA tensors as one launch.

    Args:
        run: makes no look at numbers.
        held: how many inputs, from the first on, are read and changed where they are; the others are copied.
    """

    warmup = 3

    def __init__(self, run: Runner, held: int) -> None:
        self.run, self.held = run, held
        self._places: tuple[int, ...] | None = None
        self._graph: Any = None
        self._data: list[Tensor] = []
        self._results: Sequence[Any] = ()

    def __call__(self, *inputs: Tensor) -> list[Any]:
        """The results, in memory of their own."""
        held, data = inputs[: self.held], inputs[self.held :]
        places = tuple([t.data_ptr() for t in held])
        if places != self._places:
            self._record(held, data)
            self._places = places
        for mine, given in zip(self._data, data, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return [t.clone() if isinstance(t, Tensor) else t for t in self._results]

    def _record(self, held: Sequence[Tensor], data: Sequence[Tensor]) -> None:
        self._data = [tensor.detach().clone() for tensor in data]
        self._graph, self._results = recorded(lambda: self.run(*held, *self._data), self.warmup, held)


def recorded(run: Callable[[], Any], warmup: int, changed: Sequence[Tensor] = ()) -> tuple[Any, Any]:
    """A CUDA graph of what a function does, and what it returned while it was recorded.

    It is called `warmup` times first, for allocations and the choice of algorithms; `changed` have their numbers back
    after that.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with undone(changed), torch.cuda.stream(stream):
        for _ in range(warmup):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result
