"""Per-sample weight gradients of a convolution: a batched product of output cotangents with patches of the input.

    dW_(k,n)[g, o, i q] = sum_p c_(k,n)[g, o, p] patch_n[g, i q, p]      (q kernel offsets, p output pixels)

The patch matrix is q times the input; it is formed for a few samples at a time, so that it stays in cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from gramjd.kernels.cost import chunk


def patches(
    x: Tensor, kernel: Sequence[int], out: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """View [n, channels, *kernel, *out] of a padded input [n, channels, *spatial]."""
    n, channels = x.shape[:2]
    steps = x.stride()[2:]
    return x.as_strided(
        (n, channels, *kernel, *out),
        (
            x.stride(0),
            x.stride(1),
            *(s * d for s, d in zip(steps, dilation, strict=True)),
            *(s * d for s, d in zip(steps, stride, strict=True)),
        ),
    )


def padded(
    x: Tensor,
    kernel: Sequence[int],
    out: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Zero-pad so that every patch lies inside."""
    amounts: list[int] = []
    for d in reversed(range(len(kernel))):
        reach = (out[d] - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1
        amounts += [padding[d], max(0, reach - x.shape[2 + d] - padding[d])]
    return pad(x, amounts) if any(amounts) else x


def convolution_rows(
    x: Tensor,
    c: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    dtype: torch.dtype,
) -> Tensor:
    """J [K, b, groups, o, i q] from input x [b, groups i, *spatial] and cotangents c [K, b, groups o, *out].

    `x` may carry stacked rows instead ([K, b, ..] with c of K = 1), as a transposed convolution needs.
    """
    out = c.shape[3:]
    K, b = max(x.shape[0] if x.ndim == c.ndim else 1, c.shape[0]), c.shape[1]
    stacked = x.ndim == c.ndim
    source = (x.flatten(0, 1) if stacked else x).to(dtype)
    source = padded(source, kernel, out, stride, padding, dilation)
    i, o = source.shape[1] // groups, c.shape[2] // groups
    q, P = math.prod(kernel), math.prod(out)
    other = c.to(dtype).reshape(c.shape[0], b, groups, o, P)
    J = torch.empty(K, b, groups, o, i * q, dtype=dtype, device=c.device)
    view = patches(source, kernel, out, stride, dilation)
    step = max(1, chunk() // max(1, source.shape[1] * q * P))
    for k in range(x.shape[0] if stacked else 1):
        for lo in range(0, b, step):
            part = slice(lo, min(b, lo + step))
            columns = view[k * b + lo : k * b + part.stop].reshape(-1, groups, i * q, P).flatten(0, 1)
            left = other[:, part].permute(1, 2, 0, 3, 4).reshape(-1, other.shape[0] * o, P)
            rows = torch.bmm(left, columns.mT).view(-1, groups, other.shape[0], o, i * q).permute(2, 0, 1, 3, 4)
            (J[k : k + 1] if stacked else J)[:, part] = rows
    return J
