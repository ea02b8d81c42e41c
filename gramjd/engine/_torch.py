"""Every private interface of PyTorch that this library relies on, each with what it relies on.

Nothing else touches a name of PyTorch that begins with an underscore, but for `gramjd.compiled._compilers`, which has
what compiled steps alone need. This module imports nothing but torch, so that kernels and profiling may import it, too.
`tests/test_torch_contract.py` checks each of them by name and by behaviour, so a release that changes one is met by a
test and not by a user.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache, wraps
from operator import attrgetter
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._C._profiler import _EventType as EventType
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import GradientEdge
from torch.autograd.variable import Variable
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.checkpoint import _CachedTorchDispatchMode
from torch.utils.hooks import RemovableHandle

__all__ = [
    "EventType",
    "StorageWeakRef",
    "TorchDispatchMode",
    "tree_flatten",
    "tree_leaves",
    "tree_map_only",
    "tree_unflatten",
]  # taken over under their own names

# Nodes have no public Python type that covers C++ nodes and custom functions alike.
Node = Any

# -- the engine -------------------------------------------------------------------------------------------------------

_run = Variable._execution_engine.run_backward


def run_backward(
    outputs: Sequence[Tensor | GradientEdge],
    cotangents: Sequence[Tensor],
    inputs: Sequence[GradientEdge],
    keep_graph: bool,
    accumulate: bool = False,
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad` without its checks, which cost more than the small graphs that this is used for.

    Relies on the seven positional arguments of the engine: outputs, cotangents, keep the graph, create a graph, inputs,
    allow unreachable inputs, accumulate into leaves.
    """
    found: tuple[Tensor | None, ...] = _run(
        tuple(outputs), tuple(cotangents), keep_graph, False, tuple(inputs), True, accumulate
    )
    return found


def undefined_gradients() -> Callable[[Tensor], Tensor]:
    """The identity, whose node hands on undefined gradients."""
    found: Any = torch._C._functions.UndefinedGrad()
    return cast("Callable[[Tensor], Tensor]", found)


# -- nodes ------------------------------------------------------------------------------------------------------------


# One entry per output of a node, with `shape`, `dtype`, `device` and `is_nested_tensor`. Read often: a function in
# Python would take longer than the reading.
outputs_of: Callable[[Node], Sequence[Any]] = attrgetter("_input_metadata")


def sequence_number(node: Node) -> int:
    """Grows with every node that a thread makes, so that it orders the nodes of one thread."""
    return int(node._sequence_nr())


# The type of nodes that belong to a custom `torch.autograd.Function`.
PythonNode = torch.autograd.function.BackwardCFunction


def is_python(node: Node) -> bool:
    """Returns True if the node belongs to a custom `torch.autograd.Function`."""
    return isinstance(node, PythonNode)


def run_python(node: Node, cotangents: Sequence[Tensor | None]) -> Any:
    """What the `backward` of a custom function returns."""
    return node.apply(*cotangents)


def needs_gradient(node: Node) -> Sequence[bool]:
    """For each argument of a custom function, whether its gradient is needed."""
    found: Sequence[bool] = node.needs_input_grad
    return found


@cache
def saved_attribute(name: str) -> str:
    """The attribute through which a node shows a saved value."""
    return f"_saved_{name}"


def has_saved(node: Node, name: str) -> bool:
    """Returns True if nodes of this kind save a value of this name."""
    return hasattr(type(node), saved_attribute(name))


def saved(node: Node, name: str) -> Any:
    """A value that a node saved. Raises AttributeError if nodes of this kind save none of this name."""
    return getattr(node, saved_attribute(name))


@cache
def saved_names(kind: Any) -> tuple[str, ...]:
    """The names of the values that a kind of node saves."""
    return tuple(name.removeprefix("_saved_") for name in dir(kind) if name.startswith("_saved_"))


@cache
def _raw_names(kind: Any) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


# Older releases do not tell how a tensor was saved. There a graph is freed all the same, which costs time where tensors
# are brought back for it.
TELLS_HOOKS = hasattr(torch._C._autograd.SavedTensor, "unpack_hook")


def _unpack_hooks(node: Node) -> Iterator[Any]:
    kind: Any = type(node)
    for name in _raw_names(kind) if TELLS_HOOKS else ():
        found = getattr(node, name)
        for one in found if isinstance(found, (list, tuple)) else (found,):
            if one.unpack_hook is not None:
                yield one.unpack_hook


def unpacks_by_hook(node: Node) -> bool:
    """Returns True if a hook brings back one of the tensors that a node saved, as for checkpoints and offloading."""
    return next(_unpack_hooks(node), None) is not None


def in_selective_checkpoint(node: Node) -> bool:
    """Returns True if what a node saved comes back from a selective checkpoint, which allows one backward pass."""
    frames = (_enclosed(hook, "frame") for hook in _unpack_hooks(node))
    modes = (_enclosed(getattr(frame, "recompute_fn", None), "recompute_context") for frame in frames)
    return any(isinstance(mode, _CachedTorchDispatchMode) for mode in modes)


def _enclosed(function: Any, name: str) -> Any:
    """The variable of this name that a function takes from around it; None if there is none."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return function.__closure__[names.index(name)].cell_contents if name in names else None


# -- hooks ------------------------------------------------------------------------------------------------------------


def handles_made() -> int:
    """How many handles of hooks this process has made: one per hook of a tensor, node or module."""
    return RemovableHandle.next_id


def leaf_hooks(leaf: Tensor) -> dict[int, Any] | None:
    """The hooks on a leaf tensor, in the order in which they run."""
    return leaf._backward_hooks


def accumulated_hooks(leaf: Tensor) -> Iterable[Callable[[Tensor], None]]:
    """The hooks that run once `.grad` of a leaf was added to."""
    return (leaf._post_accumulate_grad_hooks or {}).values()


# Handles that were made by `has_own_hooks`.
_own_handles = 0


def foreign_handles() -> int:
    """`handles_made`, less those that `has_own_hooks` made itself."""
    return handles_made() - _own_handles


def has_own_hooks(node: Node) -> bool:
    """Returns True if hooks were registered on the node itself: its registry is only seen by entering it."""
    global _own_handles
    for register in (node.register_hook, node.register_prehook):
        handle = register(_nothing)
        _own_handles += 1
        entries = handle.hooks_dict_ref()
        handle.remove()
        if entries:
            return True
    return False


def _nothing(*_: Any) -> None:
    """A hook that changes nothing."""


def add_output_hooks(node: Node, nr: int, registry: dict[int, Callable[[Tensor], Any]]) -> None:
    """Put a registry of hooks behind those of output `nr` of a node.

    Relies on a node taking over the registry of any tensor, for the output number of that tensor.
    """
    tensor = _of_output(nr)
    tensor._backward_hooks = registry
    node._register_hook_dict(tensor)


@cache
def _of_output(nr: int) -> Tensor:
    """A tensor that is output `nr` of its node."""
    with torch.inference_mode(False), torch.enable_grad():
        return torch.zeros(nr + 1, 1, device="cpu", requires_grad=True).unbind(0)[nr]


# -- tensors and the process ------------------------------------------------------------------------------------------


def is_zero_tensor(tensor: Tensor) -> bool:
    """Returns True for a zero that has no memory."""
    return tensor._is_zerotensor()


def storage_of(tensor: Tensor) -> int:
    """A number that tensors have in common if they share their memory."""
    return tensor.untyped_storage()._cdata


def profiler_runs() -> bool:
    """Returns True while a profiler records."""
    return torch.autograd._profiler_enabled()


def untraced() -> AbstractContextManager[Any]:
    """Without the modes of tracers and counters that are active."""
    found: AbstractContextManager[Any] = _disable_current_modes()
    return found


def mutation_is_watched() -> bool:
    """Returns True within `torch.autograd.graph.allow_mutation_on_saved_tensors`."""
    return torch.autograd.graph._allow_mutation_on_saved_tensors_enabled


# -- traces -----------------------------------------------------------------------------------------------------------


Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """The same function, which `torch.compile` around it calls as it is instead of looking inside.

    Dynamo is imported by what uses it, not here: it takes seconds.
    """
    made: list[Callable[..., Any]] = []

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not made:
            made.append(torch.compiler.disable(function))
        return made[0](*args, **kwargs)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]
    return cast("Function", run)


def schema_of(operation: Any) -> Any:
    """Arguments of an operation with what it writes to, and what is returned; None for what is no operation."""
    return getattr(operation, "_schema", None)


def is_spread(tensor: Tensor) -> bool:
    """Returns True for a DTensor, a tensor that is spread over processes."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def replicated(tensor: Tensor, mesh: Any) -> Tensor:
    """A tensor that all ranks of a mesh hold, as a DTensor."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def version_of(tensor: Tensor) -> int:
    """Grows when a tensor is written to."""
    return tensor._version


# -- products by oneDNN -----------------------------------------------------------------------------------------------

# Products `x @ weight.T` by oneDNN, as Inductor calls them; None in a build without it.
onednn_linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def product_by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` for dense float32 matrices on a CPU."""
    found: Tensor = onednn_linear(x, weight, None, "none", [], "")
    return found


# -- what profilers look at -------------------------------------------------------------------------------------------


def operation_of(function: Any) -> Any:
    """The operation that an overload, as dispatch modes get it, belongs to."""
    return function._overloadpacket


# Attention on a CPU, which the formulas of `torch.utils.flop_counter` leave out.
attention_on_cpu: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
attention_on_cpu_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def fake_tensors() -> AbstractContextManager[Any]:
    """A mode in which operations make tensors with shapes and storages, and no numbers; `from_tensor` makes one too."""
    return FakeTensorMode()


def is_fake(tensor: Tensor) -> bool:
    """Returns True for a tensor of `fake_tensors`."""
    return isinstance(tensor, FakeTensor)


def recorded_events(recording: Any) -> Any:
    """The tree of events of a finished `torch.profiler.profile`."""
    return recording.experimental_event_tree()


def record_memory_history(most: int | None) -> None:
    """Begin to record what CUDA's allocator does, with as many entries at most; None ends it."""
    if most is None:
        torch.cuda.memory._record_memory_history(enabled=None)
    else:
        torch.cuda.memory._record_memory_history(max_entries=most)


def dump_memory_history(path: str) -> None:
    """Write what was recorded, for pytorch.org/memory_viz."""
    torch.cuda.memory._dump_snapshot(path)
