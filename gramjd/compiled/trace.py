"""A function of tensors written down as a graph, on tensors without numbers.

Tensors with numbers would be wrong here: an index that decides which loss owns a row could be read, and its values of
today would stay in the graph. Without numbers such a look is an error. What follows from constants alone is computed
beside the trace (`_Numbers`), so that an index made by `arange` or held in a buffer may decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from gramjd.compiled import _compilers
from gramjd.compiled.simplify import simplified
from gramjd.engine import _torch
from gramjd.kernels.tracing import TraceError, Tracing, traced


class Traced(NamedTuple):
    """A graph, and the tensors by whose values it was decided, with the versions that they had."""

    graph: fx.GraphModule
    decided: list[tuple[Tensor, int]]

    def holds(self) -> bool:
        """Returns True if those tensors were not written to."""
        return all(_torch.version_of(tensor) == version for tensor, version in self.decided)


def trace(
    program: Callable[..., Any],
    inputs: Sequence[Tensor],
    constants: Iterable[tuple[int, Tensor]] = (),
    *,
    donates: bool = True,
    shorter: bool = True,
) -> Traced:
    """The graph of `program(*inputs)`.

    Args:
        program: what it calls must be operations of torch; it returns a flat list of tensors.
        inputs: examples, of which shapes, strides and types are taken.
        constants: places of inputs whose values may decide, with the tensor that has them.
        donates: memory may be written over; a compiler plans memory itself.
        shorter: leave out what a compiler would.

    Raises:
        TraceError: something depends on numbers, or is no operation.
    """
    state = Tracing(donates)

    def run(*given: Tensor) -> Any:
        for place, tensor in constants:
            state.know(given[place], tensor)
        with _Numbers(state):
            return program(*given)

    try:
        with traced(state), torch.no_grad():
            graph = _compilers.make_graph(run, inputs)
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(_reason(error)) from error
    return Traced(simplified(graph, shorter), [(tensor, _torch.version_of(tensor)) for tensor in state.decided])


def _reason(error: Exception) -> str:
    """What stopped a trace, in words."""
    operation = getattr(error, "func", None)
    if operation is not None:
        return f"asks {operation} for numbers, which differ from step to step"
    if type(error).__name__.startswith("GuardOnDataDependent") or "SymInt" in str(error):
        return "decides by the values of a tensor, or has a shape that depends on them"
    first = str(error).strip().split("\n")[0]
    return f"cannot be traced ({type(error).__name__}: {first[:200]})"


# The largest tensors whose numbers are computed beside a trace: indices, and small tables of anything else.
MOST_INDICES, MOST = 1 << 20, 1 << 12


class _Numbers(_torch.TorchDispatchMode):
    """Computes beside the trace what follows from constants."""

    def __init__(self, state: Tracing) -> None:
        super().__init__()
        self.state = state

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        schema = _torch.schema_of(func)
        written = [n for n, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        if not self._computed(func, args, kwargs, out) and written:
            for place in written:
                target = args[place] if place < len(args) else kwargs.get(schema.arguments[place].name)
                for tensor in _torch.tree_leaves(target):
                    if isinstance(tensor, Tensor):
                        self.state.forget(tensor)
        return out

    def _computed(self, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        """Do the same with numbers, if all of them are there. Returns False if they are not."""
        results = [t for t in _torch.tree_leaves(out) if isinstance(t, Tensor)]
        if not results or any(t.numel() > (MOST if t.is_floating_point() else MOST_INDICES) for t in results):
            return False
        if torch.Tag.nondeterministic_seeded in func.tags or any(t.is_complex() for t in results):
            return False
        operands = [t for t in _torch.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not operands and any(t.is_floating_point() for t in results):
            return False  # memory to be filled, mostly
        if not all(self.state.knows(t) for t in operands):
            return False
        sources = [s for t in operands for s in self.state.sources(t)]
        args, kwargs = _torch.tree_map_only(Tensor, self.state.numbers_of, (args, kwargs))
        kwargs = {name: torch.device("cpu") if name == "device" else value for name, value in kwargs.items()}
        with _torch.untraced(), torch.no_grad():
            values = func(*args, **kwargs)
        for tensor, value in zip(results, _torch.tree_leaves(values), strict=True):
            self.state.know(tensor, value, sources)
        return True
