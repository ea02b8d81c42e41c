"""The private interfaces of PyTorch that compiled steps alone rely on; for all others see `gramjd.engine._torch`.

`tests/test_torch_contract.py` checks each of them by name and by behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

# -- the state of modules and optimizers ------------------------------------------------------------------------------


def homes_of(module: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where a module keeps its own parameters and buffers, by name; None where there is none under a name."""
    return module._parameters, module._buffers


def shape_of(module: torch.nn.Module) -> tuple[int, ...]:
    """What changes when a module gets another attribute, parameter, buffer, hook or child."""
    hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return len(vars(module)), len(module._parameters), len(module._buffers), hooks, *map(id, module._modules.values())


def optimizer_marks(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the step of an optimizer notes for schedulers: that it was called."""
    return {name: value for name, value in vars(optimizer).items() if name == "_opt_called"}


def mark_stepped(optimizer: torch.optim.Optimizer) -> None:
    """Tell schedulers that the optimizer has made a step."""
    optimizer._opt_called = True  # type: ignore[attr-defined]


def optimizer_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Returns True if something is to be called with every step of an optimizer."""
    from torch.optim import optimizer as module

    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or module._global_optimizer_pre_hooks or module._global_optimizer_post_hooks)


@contextmanager
def compiling() -> Iterator[None]:
    """Within the block `torch.compiler.is_compiling()` says so: optimizers then compute with tensors alone."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


# -- traces -----------------------------------------------------------------------------------------------------------


def make_graph(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
    """The operations of `function(*inputs)` as a graph; tensors from outside are constants of it.

    Relies on `make_fx`, with tensors that have no numbers: with numbers the values of an index could stay in the graph.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)


def compiled_graph(graph: Any, inputs: Sequence[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """A graph compiled by Inductor, as a function of the same inputs."""
    from torch._inductor import compile as compile_graph

    found: Callable[..., Any] = compile_graph(graph, list(inputs), options)
    return found


# A view that is only made of what nothing else refers to.
unsafe_view: Any = torch.ops.aten._unsafe_view.default


# -- compiled modules -------------------------------------------------------------------------------------------------


def compiled_with_backward(graph: Any, inputs: Sequence[Any], compiler: str) -> Callable[..., Any]:
    """A graph of Dynamo's and its backward pass, compiled by one of its backends; the second may be asked for often."""
    from torch._dynamo import lookup_backend

    with _undonated():
        found: Callable[..., Any] = lookup_backend(compiler)(graph, list(inputs))
    return found


@contextmanager
def _undonated() -> Iterator[None]:
    """Within the block what is compiled leaves alone what was saved for it.

    It has a cache of its own: code from before may be taken for it otherwise, and overwrite what the next call reads.
    """
    from torch._functorch import config

    settings: Any = torch.compiler.config
    with config.patch(donated_buffer=False), settings.patch(cache_key_tag=f"{settings.cache_key_tag} kept"):
        yield


def gradients_of_compiled(
    outputs: Sequence[Any], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad` within a backward pass, which keeps a graph and makes one if that does.

    For what `compiled_with_backward` made, and which refuses to keep its graph where this is not switched off.
    """
    keeps = torch._C._autograd._get_current_graph_task_keep_graph()
    with _undonated():
        return torch.autograd.grad(
            outputs,
            inputs,
            cotangents,
            retain_graph=keeps,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )


# -- operations -------------------------------------------------------------------------------------------------------


def draws(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Returns True if an operation draws random numbers; attention does not where nothing is dropped."""
    if torch.Tag.nondeterministic_seeded not in getattr(operation, "tags", ()):
        return False
    names = [argument.name for argument in operation._schema.arguments]
    place = names.index("dropout_p") if "dropout_p" in names else None
    dropped = None if place is None else args[place] if place < len(args) else kwargs.get("dropout_p", 0.0)
    return dropped is None or dropped > 0


def fake_mode_of(values: Sequence[Any]) -> AbstractContextManager[Any]:
    """The mode that tensors without numbers among the values belong to, or one that makes such tensors."""
    modes = [value.fake_mode for value in values if isinstance(value, FakeTensor)]
    return modes[0] if modes else FakeTensorMode()


def arguments_of(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[tuple[Any, bool]]:
    """What an operation is given, each with True if it is written to.

    Batch norms in training write to running statistics, whether they say so or not.
    """
    found, trains = [], False
    for n, argument in enumerate(operation._schema.arguments):
        given = args[n] if n < len(args) else kwargs.get(argument.name)
        trains = trains or (argument.name == "training" and bool(given))
        writes = argument.alias_info is not None and argument.alias_info.is_write
        found.append((given, writes, argument.name.startswith("running_")))
    return [(given, writes or (trains and running)) for given, writes, running in found]
