"""Under which circumstances a traced step may run again: everything that it decided by, as a key to compare.

A trace holds the shapes it saw and the Python values it read. Looked at before every step: the batch (shapes, strides,
dtypes, devices, plain values), train or eval mode, which parameters require grad, autocast and the backend, options of
the optimizer, plain attributes of modules, and plain values that the function of the losses has from outside (closures
and globals that it names itself). What is hidden deeper (an attribute of an object, a global of a function that it
calls) is frozen in the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from gramjd.compiled import _compilers
from gramjd.engine import _torch
from gramjd.engine.autograd import casts
from gramjd.kernels.dispatch import current_backend
from gramjd.kernels.tracing import TraceError

# Of the options of an optimizer those that are no part of a graph.
FREE = frozenset(("params", "lr", "initial_lr"))
PLAIN = (int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device)


class Batch:
    """The arguments of a step, taken apart: their tensors, and a key that says everything else about them."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.leaves: Sequence[Any] = args
        # None: tensors alone, one per argument.
        self.spec: Any = None
        if kwargs or not all(type(a) is Tensor for a in args):
            self.leaves, self.spec = _torch.tree_flatten((args, dict(kwargs)))
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        self.key: Hashable = (self.spec, *[_described(leaf) for leaf in self.leaves])

    def rebuilt(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other tensors."""
        if self.spec is None:
            return tuple(tensors), {}
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = _torch.tree_unflatten(leaves, self.spec)
        return args, kwargs


def _described(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return described(leaf)
    if isinstance(leaf, PLAIN):
        return type(leaf), leaf
    raise TraceError(f"is given a {type(leaf).__name__}, of which it cannot be told whether it is the same next time")


def described(tensor: Tensor) -> Hashable:
    """What a trace knows of a tensor."""
    if tensor.layout != torch.strided:
        raise TraceError(f"is given a tensor with layout {tensor.layout}")
    return (
        type(tensor),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.device,
        tensor.requires_grad,
        tensor.is_conj() or tensor.is_neg(),
    )


class Outside:
    """Plain values that a function and modules have besides their arguments, parameters and buffers.

    Tensors count by identity: what is written to them is seen, another tensor in their place makes another key.
    """

    def __init__(self, function: Callable[..., Any], modules: Sequence[nn.Module]) -> None:
        cells, names = list(_cells(function)), list(_globals(function))
        reached = [*[cell.cell_contents for _, cell in cells], *[home[name] for home, name in names]]
        reached.append(getattr(function, "__self__", None))
        inside = {id(module) for module in modules}
        foreign = [m for one in reached if isinstance(one, nn.Module) for m in one.modules() if id(m) not in inside]
        self.modules = [*modules, *foreign]
        attributes = [(m, name) for m in self.modules for name, value in vars(m).items() if _is_read(name, value)]
        self._cells = [cell for _, cell in cells if isinstance(cell.cell_contents, (*PLAIN, Tensor))]
        globals_ = [(home, name) for home, name in names if isinstance(home[name], (*PLAIN, Tensor))]
        self._homes = [*globals_, *[(vars(m), name) for m, name in attributes]]
        # Of all values, in their order.
        self.names = [
            *[f"`{name}`" for name, cell in cells if cell in self._cells],
            *[f"the global `{name}`" for _, name in globals_],
            *[f"`{name}` of {type(m).__name__}" for m, name in attributes],
        ]
        # Kept alive, so that no other tensor gets the identity of one of them.
        self._alive: list[Tensor] = []

    def _values(self) -> list[Any]:
        return [*[cell.cell_contents for cell in self._cells], *[home.get(name) for home, name in self._homes]]

    def key(self) -> Hashable:
        """How the modules hang together, and all values as they are now."""
        shapes = tuple(map(_compilers.shape_of, self.modules))
        values = [id(value) if isinstance(value, Tensor) else value for value in self._values()]
        return shapes, tuple(values)

    def tensors(self) -> list[Tensor]:
        """Parameters and buffers that the modules have now."""
        homes = [home for module in self.modules for home in _compilers.homes_of(module)]
        return [tensor for home in homes for tensor in home.values() if tensor is not None]

    def keep(self) -> None:
        """Keep the tensors that are there now, whose identities a key holds."""
        self._alive += [value for value in self._values() if isinstance(value, Tensor)]

    def differing(self, key: Any, other: Any) -> list[str]:
        """The names of the values that differ between two keys."""
        if len(key[1]) != len(other[1]):
            return ["the attributes of modules"]
        return [name for name, a, b in zip(self.names, key[1], other[1], strict=False) if a != b]


def _is_read(name: str, value: Any) -> bool:
    return not name.startswith("_") and isinstance(value, (*PLAIN, Tensor))


def _functions(function: Any) -> Iterator[FunctionType]:
    """A function, and those inside a partial or a method."""
    for name in ("func", "__func__", "__wrapped__"):
        inner = getattr(function, name, None)
        if inner is not None:
            yield from _functions(inner)
    if isinstance(function, FunctionType):
        yield function


def _cells(function: Any) -> Iterator[tuple[str, CellType]]:
    """What functions have from around their definition: name and place; empty places are left out."""
    for one in _functions(function):
        for name, cell in zip(one.__code__.co_freevars, one.__closure__ or (), strict=True):
            try:
                cell.cell_contents  # noqa: B018
            except ValueError:
                continue
            yield name, cell


def _globals(function: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """The globals that functions name themselves: where they are, and the name."""
    for one in _functions(function):
        for name in one.__code__.co_names:
            if name in one.__globals__:
                yield one.__globals__, name


def ambient() -> Hashable:
    """Settings of the process and the thread that decide what operations do."""
    return tuple(casts()), current_backend(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()


def options(optimizer: torch.optim.Optimizer | None) -> Hashable:
    """Everything in the groups of an optimizer but parameters and rates."""
    if optimizer is None:
        return None
    return tuple(
        [tuple([_option(group[name]) for name in group if name not in FREE]) for group in optimizer.param_groups]
    )


def _option(value: Any) -> Hashable:
    if type(value) in PLAIN:
        return value
    if isinstance(value, (tuple, list)):
        return tuple([_option(one) for one in value])
    return id(value) if isinstance(value, Tensor) or not isinstance(value, PLAIN) else value
