"""Kernels of other devices, imitated on the CPU: graphs with the backward nodes that only those devices make.

Within ``other_devices()`` torch's own autograd makes the nodes; the kernels below them delegate to what a CPU has. They
are no more general than ``MODELS`` needs: attention is causal, without a bias or a scale; pools have no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import fit, param, sandbox

aten = torch.ops.aten
NONE = torch.zeros(0, dtype=torch.uint8)


def rms_norm(x: Tensor, shape: list[int], weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rstd = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return x * rstd * weight, rstd


def rms_norm_backward(g: Tensor, x: Tensor, shape: list[int], rstd: Tensor, weight: Tensor, mask: Any) -> Any:
    """Of `y = w x r`, `r = (mean x^2 + eps)^(-1/2)`: `dx = r w g - r^3 x mean(w g x)` and `dw = sum g x r`."""
    of_x = rstd * g * weight - rstd**3 * x * (g * weight * x).mean(-1, keepdim=True)
    return of_x, (g * x * rstd).flatten(0, -2).sum(0)


def batch_norm_backward(x: Tensor, g: Tensor, weight: Tensor, *saved: Any) -> Any:
    *statistics, eps = saved[:5]
    return aten.native_batch_norm_backward(g, x, weight, *statistics, True, eps, [True] * 3)


def fused_dropout(x: Tensor, keep: float, generator: Any = None) -> tuple[Tensor, Tensor]:
    mask = torch.rand_like(x) < keep
    return x * mask / keep, mask.to(torch.uint8)


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The output and its normaliser."""
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)


def attention_backward(*g_q_k_v_out_normaliser: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(*g_q_k_v_out_normaliser, 0.0, True)


def with_lengths(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> Any:
    """Beside the output: lengths of sequences, seeds, a mask."""
    return (*attention(q, k, v), NONE, NONE, 0, 0, NONE, NONE, NONE)


def pool_backward(g: Tensor, x: Tensor, *window: list[int]) -> Tensor:
    indices = aten.max_pool2d_with_indices(x, *window)[1]
    return aten.max_pool2d_with_indices_backward(g, x, *window[:2], [0, 0], [1, 1], False, indices)


SDPA = "_scaled_dot_product_"
KERNELS: dict[str, Callable[..., Any]] = {
    "_fused_rms_norm": rms_norm,
    "_fused_rms_norm_backward": rms_norm_backward,
    "cudnn_batch_norm": lambda *given: (*aten.native_batch_norm(*given), NONE),
    "cudnn_batch_norm_backward": batch_norm_backward,
    "miopen_batch_norm": lambda *given: aten.native_batch_norm(*given),
    "miopen_batch_norm_backward": batch_norm_backward,
    "_fused_dropout": fused_dropout,
    "_masked_scale": lambda x, mask, scale: x * mask * scale,
    "convolution_overrideable": lambda *given: aten.convolution(*given),
    "convolution_backward_overrideable": lambda g, x, w, *given: aten.convolution_backward(g, x, w, [len(w)], *given),
    f"{SDPA}flash_attention": with_lengths,
    f"{SDPA}flash_attention_backward": lambda *given: attention_backward(*given[:6]),
    f"{SDPA}efficient_attention": lambda *given: (*attention(*given[:3]), NONE, NONE),
    f"{SDPA}efficient_attention_backward": lambda *given: (*attention_backward(*given[:4], *given[5:7]), NONE),
    f"{SDPA}cudnn_attention": with_lengths,
    f"{SDPA}cudnn_attention_backward": lambda *given: attention_backward(*given[:6]),
    f"{SDPA}fused_attention_overrideable": with_lengths,
    f"{SDPA}fused_attention_overrideable_backward": lambda *given: (
        *attention_backward(*given[:4], *given[6:8]),
        NONE,
    ),
    "max_pool2d": lambda *given: aten.max_pool2d_with_indices(*given)[0],
    "max_pool2d_backward": pool_backward,
}


@contextmanager
def other_devices() -> Iterator[None]:
    """The kernels are registered for the CPU, and gone afterwards."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, kernel in KERNELS.items():
            if hasattr(aten, name):
                library.impl(name, kernel, "CPU")
        yield


class Model(NamedTuple):
    """A layer of another device, and the same layer of the CPU; both draw their parameters by ``param``."""

    node: str
    layer: Callable[[Tensor], Tensor]
    same: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    layout: str | None = "sample"


def normalised(f: Callable[..., Any], training: bool) -> Callable[[Tensor], Tensor]:
    """A batch norm, which the devices and ``F.batch_norm`` take in different orders of arguments."""
    return lambda x: f(x, torch.linspace(-1, 1, 3), torch.linspace(0.5, 2, 3), param(3), param(3), training)


def batch_norm(node: str, name: str, training: bool) -> Model:
    def layer(x: Tensor, mean: Tensor, var: Tensor, w: Tensor, b: Tensor, training: bool) -> Tensor:
        return getattr(torch, name)(x, w, b, mean, var, training, 0.1, 1e-5)[0]

    layout = "dense" if training else "sample"
    return Model(node, normalised(layer, training), normalised(F.batch_norm, training), (4, 3, 2, 5), layout)


def attending(node: str, name: str, *options: Any) -> Model:
    def apart(f: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: f(*x.view(3, 2, 4, 3, 5).unbind(3))

    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return getattr(aten, name)(q, k, v, *options, 0.0, True)[0]

    same = apart(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    return Model(node, apart(layer), same, (3, 2, 4, 15))


def convolved(f: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: f(x, param(4, 3, 2, 3), param(4), [2, 1], [1, 0], [1, 1], False, [0, 0], 1)


_ALL = [
    Model(
        "FusedRmsNormBackward0",
        lambda x: torch._fused_rms_norm(x, [6], param(6), 1e-6)[0],
        lambda x: F.rms_norm(x, [6], param(6), 1e-6),
        (4, 3, 6),
    ),
    *(batch_norm("CudnnBatchNormBackward0", "cudnn_batch_norm", training) for training in (True, False)),
    *(batch_norm("MiopenBatchNormBackward0", "miopen_batch_norm", training) for training in (True, False)),
    Model(
        "FusedDropoutBackward0",
        lambda x: torch._fused_dropout(x, 0.7)[0],
        lambda x: x * (torch.rand_like(x) < 0.7) / 0.7,
        (4, 6),
    ),
    Model(
        "ConvolutionOverrideableBackward0",
        convolved(aten.convolution_overrideable),
        convolved(torch.convolution),
        (4, 3, 6, 5),
    ),
    attending("ScaledDotProductFlashAttentionBackward0", f"{SDPA}flash_attention"),
    attending("ScaledDotProductEfficientAttentionBackward0", f"{SDPA}efficient_attention", None, True),
    attending("ScaledDotProductCudnnAttentionBackward0", f"{SDPA}cudnn_attention", None, True),
    attending("ScaledDotProductFusedAttentionOverrideableBackward0", f"{SDPA}fused_attention_overrideable", None),
    Model(
        "MaxPool2DBackward0",
        lambda x: torch.max_pool2d(x, [2, 2], [2, 1]),
        lambda x: torch.max_pool2d(x, [2, 2], [2, 1]),
        (4, 3, 6, 5),
    ),
]

# Older versions of torch lack some of the nodes.
MODELS = [model for model in _ALL if hasattr(torch._C._functions, model.node)]


def losses_of(layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """One loss per sample of ``layer`` above a linear map."""
    with sandbox(0, torch.float64):
        return fit(layer(nn.Linear(7, shape[-1])(torch.randn(*shape[:-1], 7))))
