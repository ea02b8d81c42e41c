"""Floating-point operations of a piece of code, counted as it runs.

torch's own FlopCounterMode puts hooks on tensors, which would change the walk that is measured; its formulas are used
without it. Counted are products, convolutions and attention, which is where the operations are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from gramjd.engine import _torch


def _convolution_backward(cotangent: Any, x: Any, weight: Any, *rest: Any, **named: Any) -> int:
    """As many operations as forward for each of the two products asked for; torch's formula miscounts groups."""
    transposed, mask = bool(rest[4]), rest[7]
    return int(conv_flop_count(x.shape, weight.shape, cotangent.shape, transposed)) * (int(mask[0]) + int(mask[1]))


def _attention(q: Any, k: Any, v: Any, *rest: Any, **named: Any) -> int:
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))


def _attention_backward(cotangent: Any, q: Any, k: Any, v: Any, *rest: Any, **named: Any) -> int:
    return int(sdpa_backward_flop_count(cotangent.shape, q.shape, k.shape, v.shape))


def _linear(x: Any, weight: Any, *rest: Any, **named: Any) -> int:
    return 2 * int(x.numel()) * int(weight.shape[0])


aten = torch.ops.aten
# oneDNN's product, where this build of PyTorch has it.
_onednn = _torch.onednn_linear
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten.convolution_backward: _convolution_backward,
    _torch.attention_on_cpu: _attention,
    _torch.attention_on_cpu_backward: _attention_backward,
    **({_onednn: _linear} if _onednn is not None else {}),
}


class _Counter(_torch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(_torch.operation_of(func))
        if formula is not None:
            self.operations += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def count_flops(work: Callable[[], object]) -> int:
    """Operations of `work()`, a multiply-add being two.

    >>> count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 5))
    60
    """
    with _Counter() as counter:
        work()
    return counter.operations
