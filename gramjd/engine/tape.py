"""Tapes: the tensor operations of a walk, recorded once and replayed on later graphs of the same structure.

What a walk does follows from the structure of the graph: which nodes there are, how they are linked, which shapes they
have, which numbers they saved. A training loop builds the same structure at every step, so the bookkeeping (layouts,
owners, routes) need be done once. A recording is a list of

    saved   read a tensor or a number that a node saved; another number, shape or stride than before ends the replay
    call    run a node's own backward
    apply   a torch function

over numbered registers. What cannot be repeated is not recorded at all (`refuse`): decisions by the values of a tensor,
tensors that come from nowhere, functions not known to be pure (`PURE`).

A recording may have a second part, which waits for tensors that are not known before (the weights of an update): enter
the recorder again and `give` them; `returns` says which tensors are asked for in the end.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gramjd.engine.graph import Node

# Functions of tensors whose result depends on their arguments alone, and whose shape on the arguments' shapes.
_PURE = """
    __add__ __floordiv__ __getitem__ __iadd__ __imul__ __matmul__ __mul__ __neg__ __radd__ __rmul__ __rsub__
    __setitem__ __sub__ __truediv__ abs add add_ addmm addmm_ arange as_strided baddbmm bmm cat clamp clamp_min
    clone contiguous convolution_backward copy_ cos cumsum detach div einsum empty empty_like expand expand_as eye
    fill_ flatten flip gather ge gt imag index_add_ index_fill index_put_ index_select int le linalg_vector_norm lt
    masked_fill masked_fill_ matmul mean mH mm movedim mT mul mul_ narrow native_group_norm_backward
    native_layer_norm_backward ne new_empty new_full new_ones new_zeros ones ones_like pad permute pow real
    reciprocal repeat reshape resolve_conj roll rsqrt scatter scatter_add_ select sin slice softmax split square
    square_ squeeze stack sub sum swapaxes t T tanh tensordot tile to transpose tril tril_ triu triu_ unbind
    unflatten unfold unsqueeze vector_norm view view_as view_as_complex view_as_real where zero_ zeros zeros_like
"""
# Questions about a tensor whose answers the guards of a replay cover.
_ASKS = """
    __len__ data_ptr device dim dtype element_size is_complex is_contiguous is_cuda is_floating_point is_meta
    is_sparse itemsize layout nbytes ndim numel requires_grad shape size storage_offset stride __hash__ is_nested
    untyped_storage promote_types result_type _is_zerotensor
"""
# Functions that may find nothing to do.
UNCHANGED = frozenset({"contiguous", "expand", "flatten", "reshape", "to"})
PURE, ASKS = frozenset(_PURE.split()), frozenset(_ASKS.split())
LONGEST = 20_000
_recorder: ContextVar[Recorder | None] = ContextVar("gramjd_recorder", default=None)


Operation = Callable[[list[Any], Sequence[Node]], None]


class MismatchError(Exception):
    """A graph that looked like the recorded one turned out to differ."""


@dataclass(frozen=True)
class Register:
    """Stands for a tensor in recorded arguments."""

    number: int


@dataclass(frozen=True)
class Part:
    """The operations from `start` on, which work on tensors like the ones that were given: register and signature."""

    start: int
    given: list[tuple[int, tuple[Any, ...]]]


@dataclass
class Tape:
    """The recorded operations, in parts; the registers `given` to a part are filled by the caller."""

    operations: list[Operation] = field(default_factory=list)
    drops: list[tuple[int, ...]] = field(default_factory=list)
    registers: int = 0
    parts: list[Part] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)


class Replay:
    """A tape that runs on the nodes of another graph, given in the order of `Graph.children`."""

    def __init__(self, tape: Tape, nodes: Sequence[Node]) -> None:  # noqa: D107
        self._tape, self._nodes = tape, nodes
        self._held: list[Any] = [None] * tape.registers
        self._part = 0

    def run(self, *given: Tensor) -> list[Tensor]:
        """The next part; the last one returns what was asked for.

        Raises:
            MismatchError: the graph differs; what was given may have been written to.
        """
        tape, held, nodes = self._tape, self._held, self._nodes
        part = tape.parts[self._part]
        self._part += 1
        last = self._part == len(tape.parts)
        end = len(tape.operations) if last else tape.parts[self._part].start
        for (number, expected), tensor in zip(part.given, given, strict=True):
            if signature(tensor) != expected:
                raise MismatchError("what was given")
            held[number] = tensor
        for place in range(part.start, end):
            tape.operations[place](held, nodes)
            for number in tape.drops[place]:
                held[number] = None
        return [held[number] for number in tape.returned] if last else []


class Recorder(TorchFunctionMode):
    """Records what is done to tensors while it is entered."""

    def __init__(self, nodes: Iterable[Node]) -> None:  # noqa: D107
        super().__init__()
        self.refused: str | None = None
        self._places = {node: place for place, node in enumerate(nodes)}
        self._tape = Tape()
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._last_use: dict[int, int] = {}
        self._read_memory: set[int] = set()
        self._quiet = False

    def __enter__(self) -> Recorder:
        """Record from here on."""
        self._token = _recorder.set(self)
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Stop recording."""
        super().__exit__(*raised)
        _recorder.reset(self._token)

    def give(self, *given: Tensor) -> None:
        """Begin a part that starts from these tensors."""
        registers = [(self._register(tensor), signature(tensor)) for tensor in given]
        self._tape.parts.append(Part(len(self._tape.operations), registers))

    def returns(self, tensors: Sequence[Tensor]) -> None:
        """Ask for these in the end."""
        found = [self._number(tensor) for tensor in tensors]
        if None in found:
            self.refuse("a tensor from elsewhere")
        self._tape.returned = [number for number in found if number is not None]

    def tape(self) -> Tape | None:
        """What was recorded, or None if it cannot be repeated."""
        if self.refused is not None:
            return None
        tape = self._tape
        drops: list[list[int]] = [[] for _ in tape.operations]
        for number, place in self._last_use.items():
            if number not in tape.returned:
                drops[place].append(number)
        tape.drops = [tuple(drop) for drop in drops]
        return tape

    def refuse(self, reason: str) -> None:
        """Give up recording; what is computed goes on."""
        self.refused = self.refused or reason

    # -- what is recorded --------------------------------------------------------------------------------------------

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A torch function is called."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if self._quiet or self.refused is not None:
            return result
        name = _name_of(function)
        if name == "data_ptr" and args[0].untyped_storage().data_ptr() in self._read_memory:
            self.refuse("a look at where a saved tensor lies")
        if name in ASKS or (name in UNCHANGED and result is args[0]):
            return result
        if name not in PURE or _by_mask(name, args) or (name == "as_strided" and len(args) + len(kwargs) > 3):
            self.refuse(f"{name} is not known to be repeatable")
            return result
        (filled, named), used = self._references((args, kwargs)), self._used
        if self.refused is None:
            outs = self._results(result)
            single = isinstance(result, Tensor)
            self._add(_applied(function, filled, named, outs, single), used, [o for o in outs if o is not None])
        return result

    def saved(self, node: Node, name: str, value: Any) -> Any:
        """A rule read what a node saved. Returns what it is to work with."""
        if self.refused is not None or self._quiet:
            return value
        attribute, place = f"_saved_{name}", self._places.get(node)
        if place is None:
            self.refuse("a graph within the graph")
        elif isinstance(value, Tensor):
            if self._number(value) is not None:
                # What two nodes saved may be one tensor now and two the next time.
                value = self._alias(value)
            if not value._is_zerotensor():
                self._read_memory.add(value.untyped_storage().data_ptr())
            out = self._register(value)
            self._add(_read(place, attribute, signature(value), out), (), [out])
        elif isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
            self.refuse("a list of saved tensors")
        else:
            self._add(_compared(place, attribute, value), (), [])
        return value

    def _alias(self, tensor: Tensor) -> Tensor:
        self._quiet = True
        try:
            return tensor.detach()
        finally:
            self._quiet = False

    def called(self, node: Node, run: Callable[[Node, Any], Any], values: Sequence[Tensor | None]) -> Any:
        """Run a node's own backward as one operation."""
        self._quiet, before = True, self._quiet
        try:
            results = run(node, values)
        finally:
            self._quiet = before
        if self.refused is not None or before:
            return results
        place = self._places.get(node)
        if place is None:
            self.refuse("a graph within the graph")
            return results
        filled, used = self._references(list(values)), self._used
        flat = list(results) if isinstance(results, (list, tuple)) else [results]
        expected = [None if r is None else signature(r) for r in flat]
        outs = [None if r is None else self._register(r) for r in flat]
        self._add(_called(place, run, filled, expected, outs), used, [o for o in outs if o is not None])
        return results

    def constant(self, tensor: Tensor) -> None:
        """A tensor made from the structure alone."""
        if self.refused is None and not self._quiet:
            out = self._register(tensor)

            def put(held: list[Any], _: Sequence[Node]) -> None:
                held[out] = tensor

            self._add(put, (), [out])

    # -- registers ---------------------------------------------------------------------------------------------------

    def _register(self, tensor: Tensor) -> int:
        number = self._tape.registers
        self._tape.registers += 1
        self._known[id(tensor)] = (weakref.ref(tensor), number)
        return number

    def _number(self, tensor: Tensor) -> int | None:
        found = self._known.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def _references(self, value: Any) -> Any:
        """The same arguments with registers in place of tensors; `_used` tells which."""
        self._used: list[int] = []
        return self._referring(value)

    def _referring(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            number = self._number(value)
            if number is None:
                self.refuse("a tensor from elsewhere")
                return None
            self._used.append(number)
            return Register(number)
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            return type(value)(self._referring(v) for v in value)
        if isinstance(value, dict):
            return {key: self._referring(v) for key, v in value.items()}
        return value

    def _results(self, result: Any) -> list[int | None]:
        """Registers of what a function returned; one that it changed in place keeps its own."""
        found: list[int | None] = []
        for tensor in [result] if isinstance(result, Tensor) else result or ():
            number = None if tensor is None else self._number(tensor)
            found.append(self._register(tensor) if number is None and tensor is not None else number)
        return found

    def _add(self, operation: Operation, used: Iterable[int], outs: list[int]) -> None:
        place = len(self._tape.operations)
        if place >= LONGEST:
            self.refuse("too long")
            return
        self._tape.operations.append(operation)
        for number in (*used, *outs):
            self._last_use[number] = place


def signature(tensor: Tensor) -> tuple[Any, ...]:
    """What a recorded sequence of operations relies on, besides the numbers."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.layout


def _name_of(function: Any) -> str:
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return str(function.__self__.__name__)
    return str(name).split(".")[0]


def _by_mask(name: str, args: Sequence[Any]) -> bool:
    """Whether an index is a mask, so that the shape of the result depends on its values."""
    if name not in ("__getitem__", "__setitem__"):
        return name == "where" and len(args) < 3
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in index)


def _fill(template: Any, held: list[Any]) -> Any:
    kind = type(template)
    if kind is Register:
        return held[template.number]
    if kind is tuple or kind is list:
        return kind([_fill(v, held) for v in template])
    return {key: _fill(v, held) for key, v in template.items()} if kind is dict else template


def _applied(
    function: Any, filled: tuple[Any, ...], named: dict[str, Any], outs: list[int | None], single: bool
) -> Operation:
    slots = [(place, value.number) for place, value in enumerate(filled) if type(value) is Register]
    nested = named or any(type(value) in (tuple, list) for value in filled)

    def apply(held: list[Any], _: Sequence[Node]) -> None:
        if nested:
            result = function(*_fill(filled, held), **_fill(named, held))
        else:
            args = list(filled)
            for place, number in slots:
                args[place] = held[number]
            result = function(*args)
        if single:
            held[outs[0]] = result  # type: ignore[index]
            return
        for out, tensor in zip(outs, result or (), strict=True):
            if out is not None:
                held[out] = tensor

    return apply


def _read(place: int, attribute: str, expected: tuple[Any, ...], out: int) -> Operation:
    def read(held: list[Any], nodes: Sequence[Node]) -> None:
        value = getattr(nodes[place], attribute)
        if not isinstance(value, Tensor) or signature(value) != expected:
            raise MismatchError(attribute)
        held[out] = value

    return read


def _compared(place: int, attribute: str, expected: Any) -> Operation:
    def compare(_: list[Any], nodes: Sequence[Node]) -> None:
        value = getattr(nodes[place], attribute)
        if type(value) is not type(expected) or value != expected:
            raise MismatchError(attribute)

    return compare


def _called(
    place: int,
    run: Callable[[Node, Any], Any],
    filled: list[Any],
    expected: list[tuple[Any, ...] | None],
    outs: list[int | None],
) -> Operation:
    def call(held: list[Any], nodes: Sequence[Node]) -> None:
        results = run(nodes[place], [_fill(v, held) for v in filled])
        flat = list(results) if isinstance(results, (list, tuple)) else [results]
        for out, result, known in zip(outs, flat, expected, strict=True):
            if (None if result is None else signature(result)) != known:
                raise MismatchError("the result of a node")
            if out is not None:
                held[out] = result

    return call


# -- what the walk tells ---------------------------------------------------------------------------------------------


def note_saved(node: Node, name: str, value: Any) -> Any:
    """A rule reads what a node saved; returns what it is to work with."""
    recorder = _recorder.get()
    return value if recorder is None else recorder.saved(node, name, value)


def call(node: Node, run: Callable[[Node, Any], Any], values: Sequence[Tensor | None]) -> Any:
    """A rule runs a node's own backward: `run(node, values)`."""
    recorder = _recorder.get()
    return run(node, values) if recorder is None else recorder.called(node, run, values)


def note_constant(tensor: Tensor) -> None:
    """A tensor was made from the structure alone, outside torch's functions."""
    recorder = _recorder.get()
    if recorder is not None:
        recorder.constant(tensor)


def refuse(reason: str) -> None:
    """The walk does something that a replay could not."""
    recorder = _recorder.get()
    if recorder is not None:
        recorder.refuse(reason)
