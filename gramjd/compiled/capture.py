"""A whole training step as one CUDA graph: launched once instead of kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gramjd.compiled.run import recorded
from gramjd.errors import InputError

Function = Callable[..., Any]


def capture(step: Function, *inputs: Tensor, warmup: int = 3) -> Function:
    """Record `step(*inputs)` (forward, `gram_backward`, optimizer) as a CUDA graph; returns a function that replays it.

    The step must do the same every time: fixed shapes, no decision by values. Index operations whose data decide which
    loss owns a row, and checks for NaN, are answered during recording: NaN is not reported during a replay. Use
    an optimizer with `capturable=True`, and `optimizer.zero_grad(set_to_none=False)` inside the step. `UPGrad` and
    `DualProj` solve without leaving the device; other aggregators may not.

    Args:
        step: a function of CUDA tensors; what it returns is what each replay returns, in the same memory.
        inputs: example arguments, CUDA tensors.
        warmup: calls before the recording, for allocations and the choice of algorithms; they train, too.

    Returns:
        A function of tensors like `inputs`, which it copies to the place of the example and replays the step.

    Raises:
        InputError: no CUDA device, an input that is not on one, or a later input of another shape or dtype.

    Source: https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """
    if not torch.cuda.is_available():
        raise InputError("capture records CUDA graphs, and there is no CUDA device here: call the step as it is")
    for place, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor) or not tensor.is_cuda:
            where = tensor.device if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(f"input {place} of the step is on {where}: capture needs CUDA tensors")
    held = [tensor.detach().clone() for tensor in inputs]
    graph, result = recorded(lambda: step(*held), warmup)

    def replay(*given: Tensor) -> Any:
        check_like(held, given)
        for place, tensor in zip(held, given, strict=True):
            place.copy_(tensor)
        graph.replay()
        return result

    return replay


def check_like(held: list[Tensor], given: tuple[Tensor, ...]) -> None:
    """Raise unless the tensors given can take the place of those recorded with."""
    if len(given) != len(held):
        raise InputError(f"the step was recorded with {len(held)} inputs; got {len(given)}")
    for place, (mine, other) in enumerate(zip(held, given, strict=True)):
        if (mine.shape, mine.dtype) != (other.shape, other.dtype):
            raise InputError(
                f"input {place} is {tuple(other.shape)}, {other.dtype}; the step was recorded with "
                f"{tuple(mine.shape)}, {mine.dtype}: record another for it"
            )


__all__ = ["capture"]
