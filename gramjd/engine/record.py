"""Recording a walk: which tensor operations it is made of, for a tape that repeats them on later graphs.

What a walk does follows from the structure of the graph: which nodes there are, how they are linked, which shapes they
have, which numbers they saved. A training loop builds the same structure at every step, so the bookkeeping (layouts,
owners, routes) need be done once. What cannot be repeated is not recorded at all (`refuse`): decisions by the values of
a tensor, tensors that come from nowhere, functions not known to be pure (`PURE`).

A recording may have a second part, which waits for tensors that are not known before (the weights of an update): enter
the recorder again and `give` them; `returns` says which tensors are asked for in the end.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gramjd.engine._torch import is_zero_tensor, saved_attribute, storage_of
from gramjd.engine.graph import Node
from gramjd.engine.tape import Register, Script, Tape, signature

# Functions of tensors whose result depends on their arguments alone, and whose shape on the arguments' shapes.
_PURE = """
    _linear_pointwise __add__ __floordiv__ __getitem__ __iadd__ __imul__ __matmul__ __mul__ __neg__ __radd__
    __rmul__ __rsub__ __setitem__ __sub__ __truediv__ abs add add_ addmm addmm_ arange as_strided baddbmm bmm cat
    clamp clamp_min clone contiguous convolution_backward copy_ cos cumsum detach div einsum elu_backward empty
    empty_like expand expand_as eye fill_ flatten flip gather ge gelu_backward gt imag index_add_ index_fill
    index_put_ index_select int le leaky_relu_backward linalg_vector_norm lt masked_fill masked_fill_ matmul mean mH
    mm movedim mT mul mul_ narrow native_group_norm_backward native_layer_norm_backward ne new_empty new_full
    new_ones new_zeros ones ones_like pad permute pow real reciprocal repeat reshape resolve_conj roll rsqrt scatter
    scatter_add_ select sigmoid_backward silu_backward sin slice softmax split square square_ squeeze stack sub sum
    swapaxes t T tanh tanh_backward tensordot threshold_backward tile to transpose tril tril_ triu triu_ unbind
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
# Functions that look at a part of their first argument, or at it in another shape.
_VIEWS = """
    __getitem__ detach expand flatten mT movedim narrow permute reshape select squeeze swapaxes t T transpose unflatten
    unfold unsqueeze view
"""
VIEWS = frozenset(_VIEWS.split())
LONGEST = 20_000
_recorder: ContextVar[Recorder | None] = ContextVar("gramjd_recorder", default=None)


class Recorder(TorchFunctionMode):
    """Records what is done to tensors while it is entered."""

    def __init__(self, nodes: Iterable[Node]) -> None:  # noqa: D107
        super().__init__()
        self.refused: str | None = None
        self._places = {node: place for place, node in enumerate(nodes)}
        self._script = Script()
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
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
        self._script.begin([(self._register(tensor), signature(tensor)) for tensor in given])

    def returns(self, tensors: Sequence[Tensor]) -> None:
        """Ask for these in the end."""
        found = [self._number(tensor) for tensor in tensors]
        if None in found:
            self.refuse("a tensor from elsewhere")
        self._script.returned = [number for number in found if number is not None]

    def tape(self) -> Tape | None:
        """What was recorded, or None if it cannot be repeated."""
        if len(self._script) > LONGEST:
            self.refuse("too long")
        return self._script.compile() if self.refused is None else None

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
        filled, named = self._referring((args, kwargs))
        if self.refused is not None:
            return result
        if name in VIEWS and _registers((filled[1:], named)) == 0 and _is_plain_view(result, args[0]):
            number = self._script.view(filled[0].number, args[0], result)
            self._known[id(result)] = (weakref.ref(result), number)
        else:
            self._script.apply(function, filled, named, self._results(result), isinstance(result, Tensor))
        return result

    def saved(self, node: Node, name: str, value: Any) -> Any:
        """A rule read what a node saved. Returns what it is to work with."""
        if self.refused is not None or self._quiet:
            return value
        attribute, place = saved_attribute(name), self._places.get(node)
        if place is None:
            self.refuse("a graph within the graph")
        elif isinstance(value, Tensor):
            if self._number(value) is not None:
                # What two nodes saved may be one tensor now and two the next time.
                value = self._alias(value)
            if not is_zero_tensor(value):
                self._read_memory.add(value.untyped_storage().data_ptr())
            self._script.read(place, attribute, signature(value), self._register(value))
        elif isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
            self.refuse("a list of saved tensors")
        else:
            self._script.compare(place, attribute, value)
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
        filled = self._referring(list(values))
        flat = list(results) if isinstance(results, (list, tuple)) else [results]
        expected = [None if r is None else signature(r) for r in flat]
        outs = [None if r is None else self._register(r) for r in flat]
        self._script.call(place, run, filled, expected, outs)
        return results

    def constant(self, tensor: Tensor) -> None:
        """A tensor made from the structure alone."""
        if self.refused is None and not self._quiet:
            self._script.put(self._register(tensor), tensor)

    # -- registers ---------------------------------------------------------------------------------------------------

    def _register(self, tensor: Tensor) -> int:
        number = self._script.new_register()
        self._known[id(tensor)] = (weakref.ref(tensor), number)
        return number

    def _number(self, tensor: Tensor) -> int | None:
        found = self._known.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def _referring(self, value: Any) -> Any:
        """The same arguments with registers in place of tensors."""
        if isinstance(value, Tensor):
            number = self._number(value)
            if number is None:
                self.refuse("a tensor from elsewhere")
                return None
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


def _name_of(function: Any) -> str:
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return str(function.__self__.__name__)
    return str(name).split(".")[0]


def _is_plain_view(result: Tensor, of: Tensor) -> bool:
    """Whether it is the same memory, and sizes, strides and an offset say all about it."""
    if result.layout != torch.strided or of.layout != torch.strided or result.is_complex():
        return False
    lazy = any(t.is_neg() or is_zero_tensor(t) for t in (result, of))
    return not lazy and storage_of(result) == storage_of(of)


def _registers(template: Any) -> int:
    """How many tensors there are in recorded arguments."""
    if isinstance(template, dict):
        template = tuple(template.values())
    return sum(map(_registers, template)) if isinstance(template, (tuple, list)) else isinstance(template, Register)


def _by_mask(name: str, args: Sequence[Any]) -> bool:
    """Whether an index is a mask, so that the shape of the result depends on its values."""
    if name not in ("__getitem__", "__setitem__"):
        return name == "where" and len(args) < 3
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in index)


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
