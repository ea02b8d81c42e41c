"""While a step is traced: which operations stay whole in the graph, and which numbers may be asked for.

A trace runs the step once on tensors without numbers and writes down every operation. What works in chunks, in place
or with a look at its operands would be written down as it went for this one run; such functions are operations of
their own in a graph (`whole`), and run as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

from gramjd.engine import _torch

Function = TypeVar("Function", bound=Callable[..., Any])


class TraceError(Exception):
    """What is traced cannot be: the message says why; `operation` names the node at which it was found."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.operation = ""


class Known(NamedTuple):
    """A tensor of a trace, its numbers on the CPU, and the tensors from outside that they follow from."""

    tensor: Tensor
    numbers: Tensor
    sources: list[Tensor]


class Tracing:
    """A trace that is being made.

    `donates`: what nothing else refers to may be written over; not for a compiler, which plans memory itself.
    `decided`: tensors from outside whose values decided something.
    """

    def __init__(self, donates: bool) -> None:
        self.donates = donates
        self.decided: list[Tensor] = []
        self._known: dict[Any, Known] = {}

    def know(self, tensor: Tensor, numbers: Tensor, sources: Sequence[Tensor] | None = None) -> None:
        """Note the numbers of a tensor of the trace; without `sources`: those of a tensor from outside."""
        if sources is None:
            with _torch.untraced():
                numbers, sources = numbers.detach().to("cpu", copy=True), [numbers]
        self._known[_key(tensor)] = Known(tensor, numbers, list(sources))

    def knows(self, tensor: Tensor) -> bool:
        """Returns True if the numbers of a tensor are there."""
        return not _torch.is_fake(tensor) or _key(tensor) in self._known

    def numbers_of(self, tensor: Tensor) -> Tensor:
        """The numbers of a tensor that is known."""
        if _torch.is_fake(tensor):
            return self._known[_key(tensor)].numbers
        with _torch.untraced():
            return tensor.detach().cpu()

    def sources(self, tensor: Tensor) -> list[Tensor]:
        """The tensors from outside that the numbers of a tensor follow from."""
        return self._known[_key(tensor)].sources if _torch.is_fake(tensor) else [tensor]

    def forget(self, tensor: Tensor) -> None:
        """Note that something unknown was written to the memory of a tensor."""
        if _torch.is_fake(tensor):
            memory = _torch.storage_of(tensor)
            self._known = {key: known for key, known in self._known.items() if key[0] != memory}

    def host(self, tensor: Tensor) -> Tensor:
        """The numbers of a tensor, to decide by."""
        if not self.knows(tensor):
            raise TraceError("decides by the values of a tensor that may differ from step to step")
        self.decided += self.sources(tensor)
        return self.numbers_of(tensor)


def _key(tensor: Tensor) -> tuple[Any, ...]:
    """The same for all tensors that are the same view of the same memory."""
    return _torch.storage_of(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


_tracing: ContextVar[Tracing | None] = ContextVar("gramjd_tracing", default=None)
tracing = _tracing.get


def donates() -> bool:
    """Returns True unless a trace is made in which nothing is to be written over."""
    state = tracing()
    return state is None or state.donates


@contextmanager
def traced(state: Tracing) -> Iterator[Tracing]:
    """Within the block a trace is being made."""
    token = _tracing.set(state)
    try:
        yield state
    finally:
        _tracing.reset(token)


def host(tensor: Tensor) -> Tensor:
    """A tensor on the CPU with numbers to decide by.

    Raises:
        TraceError: a trace is being made, and the numbers do not follow from constants.
    """
    state = tracing()
    return tensor.cpu() if state is None else state.host(tensor)


def to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """The numbers of a tensor to decide by, as an array; raises as `host` does."""
    found = host(tensor)
    with concretely():
        array: npt.NDArray[Any] = found.numpy()
    return array


def concretely() -> AbstractContextManager[Any]:
    """Within the block operations on tensors with numbers are done and not written down, also while a trace is made."""
    return nullcontext() if tracing() is None else _torch.untraced()


def constant(tensor: Tensor) -> Tensor:
    """A tensor that was made from Python numbers, to be used among those of a trace."""
    return tensor if tracing() is None else torch.ops.aten.lift_fresh_copy.default(tensor)


# A test may import this file under a second name: it finds the operations of the first one there.
_library = torch.library.Library("gramjd", "FRAGMENT")


def whole(
    schema: str, fake: Callable[..., Tensor], at_once: Callable[..., Callable[..., Tensor] | None] | None = None
) -> Callable[[Function], Function]:
    """A function that is one operation in a trace.

    Args:
        schema: its name and arguments as `torch.library` takes them, such as "gram(Tensor J) -> Tensor".
        fake: for the same arguments, an empty tensor like the result.
        at_once: for the same arguments, a function with the same result whose operations are written down instead, if
            they are few; else None.
    """

    def decorate(function: Function) -> Function:
        name = schema.split("(")[0]
        if not hasattr(torch.ops.gramjd, name):
            _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
            _library.impl(name, function, "CompositeExplicitAutograd")
            torch.library.register_fake(f"gramjd::{name}", fake, lib=_library)
        operation = getattr(torch.ops.gramjd, name).default

        @functools.wraps(function)
        def run(*args: Any) -> Any:
            if tracing() is None:
                return function(*args)
            form = None if at_once is None else at_once(*args)
            return (form or operation)(*args)

        return run  # type: ignore[return-value]

    return decorate


def square(c: Tensor, dtype: torch.dtype, K: int, b: int) -> Tensor:
    """An empty Gram matrix [K b, K b]."""
    return c.new_empty(K * b, K * b, dtype=dtype)


def rectangle(c: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty matrix [K b, K2 b2] for c [K, b, *] and c2 [K2, b2, *]."""
    return c.new_empty(c.shape[0] * c.shape[1], c2.shape[0] * c2.shape[1], dtype=dtype)
