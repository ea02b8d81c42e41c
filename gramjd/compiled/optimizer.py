"""Optimizers within a trace: the rate is a tensor, so that a schedule does not ask for another graph.

The optimizers of torch have a form for CUDA graphs that computes with tensors alone (`capturable`); a trace takes it.
In both forms a few calls take a number where there is a tensor now; they are written out (`SCALED`). Written out they
stay right under Inductor, which drops `alpha` where it merges such a sum with a product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gramjd.compiled import _compilers
from gramjd.kernels.tracing import TraceError

# Calls with a scale, and what is computed for them: (self, other operands, scale) to what is added to self.
SCALED: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "add": ("alpha", lambda scale, other: other * scale),
    "sub": ("alpha", lambda scale, other: other * -scale),
    "addcmul": ("value", lambda scale, a, b: a * b * scale),
    "addcdiv": ("value", lambda scale, a, b: a / b * scale),
}


class Scaled(TorchFunctionMode):
    """Within it the calls of `SCALED` are written out."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do the call, or what stands for it."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        scale_name, product = SCALED.get(name.removesuffix("_"), ("", None))
        if product is None or scale_name not in kwargs:
            return func(*args, **kwargs)
        first, *others = args
        added = product(kwargs.pop(scale_name), *others)
        return first.add_(added) if name.endswith("_") else torch.add(first, added, **kwargs)


@contextmanager
def traceable(
    optimizer: torch.optim.Optimizer, leaves: Mapping[int, Tensor], state: Mapping[int, Tensor], rates: Sequence[Tensor]
) -> Iterator[None]:
    """Within the block the optimizer steps on other tensors.

    Args:
        optimizer: with a state, as after its first step.
        leaves: for the id of each parameter the tensor in its place.
        state: for the id of each tensor of the state the one in its place.
        rates: one per group, instead of the number.

    Raises:
        TraceError: the optimizer changes something else than tensors in place.
    """
    groups, own = optimizer.param_groups, optimizer.state
    optimizer.param_groups = [_group(group, leaves, rate) for group, rate in zip(groups, rates, strict=True)]
    optimizer.state = type(own)(own.default_factory)
    for p, values in own.items():
        if id(p) in leaves:
            optimizer.state[leaves[id(p)]] = {name: state.get(id(value), value) for name, value in values.items()}
    before = {p: dict(values) for p, values in optimizer.state.items()}
    counted = _compilers.optimizer_marks(optimizer)
    try:
        with _compilers.compiling(), Scaled():
            yield
        _check(optimizer.state, before)
    finally:
        optimizer.param_groups, optimizer.state = groups, own
        vars(optimizer).update(counted)


def _group(group: Mapping[str, Any], leaves: Mapping[int, Tensor], rate: Tensor) -> dict[str, Any]:
    found = {**group, "params": [leaves[id(p)] for p in group["params"]], "lr": rate}
    found.update({name: True for name in ("capturable",) if name in group})
    found.update({name: False for name in ("foreach", "fused") if name in group})
    return found


def _check(state: Mapping[Any, Mapping[str, Any]], before: Mapping[Any, Mapping[str, Any]]) -> None:
    for p, values in state.items():
        was = before.get(p, {})
        for name in values.keys() | was.keys():
            old, new = was.get(name), values.get(name)
            if old is not new and not (isinstance(new, (int, float, bool)) and old == new):
                raise TraceError(f"replaces `{name}` of its state in every step")


def rates(optimizer: torch.optim.Optimizer | None) -> list[float]:
    """The rate of each group."""
    return [] if optimizer is None else [float(group["lr"]) for group in optimizer.param_groups]
