"""The weighted sum of rows: what a second backward pass would compute, from the factors of the first.

    sum over k, n of w_(k,n) J_(k,n),    J_(k,n) = sum_t c_(k,n,t) x_(n,t)^T

The weights go into the cotangents and the K stacked rows are added before the product, so there is one product of the
size of a plain weight gradient: 2 b T i o operations per group, after one pass over the K b T o cotangents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gramjd.kernels import dispatch
from gramjd.kernels.cost import IN_CACHE, chunk
from gramjd.kernels.products import product
from gramjd.kernels.symmetric import even
from gramjd.kernels.tracing import whole


def weighted_cotangents(c: Tensor, w: Tensor, batch: int) -> Tensor:
    """`sum_k w[k, n] c[k, .., n, ..]` for c [K, *] with the batch axis at `batch` (of c), and w [K b]."""
    K, b = c.shape[0], c.shape[batch]
    shape = [K] + [1] * (c.ndim - 1)
    shape[batch] = b
    scaled = c * w.to(c.dtype).reshape(shape)
    return scaled[0] if K == 1 else scaled.sum(0)


def weighted_outer(x: Tensor, c: Tensor, w: Tensor) -> Tensor:
    """[g, o, i] from x [g, b, T, i], c [K, g, b, T, o] and weights w [K b]."""
    if dispatch.implementation("weighted.outer", c.device, x.dtype, c.dtype) is not None:
        return _outer_by_kernel(x, c, w)
    C = weighted_cotangents(c, w, 2).flatten(1, 2)
    X = x.to(C.dtype).flatten(1, 2)
    # One product is faster than a batch of one.
    return product(C[0].T, X[0]).unsqueeze(0) if len(C) == 1 else C.mT @ X


@whole(
    "weighted_outer(Tensor x, Tensor c, Tensor w) -> Tensor",
    lambda x, c, w: c.new_empty(c.shape[1], c.shape[-1], x.shape[-1]),
)
def _outer_by_kernel(x: Tensor, c: Tensor, w: Tensor) -> Tensor:
    kernel = dispatch.implementation("weighted.outer", c.device, x.dtype, c.dtype)
    assert kernel is not None, "the caller has found one"
    found: Tensor = kernel(x, c, w)
    return found


def weighted_gathered(ids: Tensor, c: Tensor, w: Tensor, size: int) -> Tensor:
    """[size, d]: row `ids[n, t]` of a table receives w_(k,n) c_(k,n,t), for ids [b, T] and c [K, b, T, d]."""
    C = weighted_cotangents(c, w, 1)
    return C.new_zeros(size, C.shape[-1]).index_add_(0, ids.flatten(), C.flatten(0, 1))


def weighted_convolution(
    x: Tensor, c: Tensor, w: Tensor, weight_shape: Sequence[int], transposed: bool, options: dict[str, Any]
) -> Tensor:
    """The weight gradient of a convolution with input x [b, i, *] for the cotangents c [K, b, o, *] weighted by w.

    Some samples at a time: the library makes a copy of both in its own order. A transposed convolution is the plain one
    from its output to its input, so the two change places.
    """
    sizes = (options[name] for name in ("stride", "padding", "dilation", "groups"))
    return _convolution(x, c, w, weight_shape, transposed, *sizes)


@whole(
    "weighted_convolution(Tensor x, Tensor c, Tensor w, int[] weight_shape, bool transposed, int[] stride, "
    "int[] padding, int[] dilation, int groups) -> Tensor",
    lambda x, c, w, weight_shape, *_: c.new_empty(weight_shape),
)
def _convolution(
    x: Tensor,
    c: Tensor,
    w: Tensor,
    weight_shape: Sequence[int],
    transposed: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    w = w.view(c.shape[:2])
    samples = even(len(x), min(chunk(), IN_CACHE) // max(1, math.prod(x.shape[1:]) + math.prod(c.shape[2:])))
    parts = [slice(lo, lo + samples) for lo in range(0, len(x), samples)]
    gradients = (
        _weight_gradient(x[part], weighted_cotangents(c[:, part], w[:, part], 1), weight_shape, transposed, options)
        for part in parts
    )
    total = next(gradients)
    for gradient in gradients:
        total += gradient
    return total.contiguous()


def _weight_gradient(
    x: Tensor, C: Tensor, weight_shape: Sequence[int], transposed: bool, options: dict[str, Any]
) -> Tensor:
    x = x.to(C.dtype)
    above, below = (_lengthened(x, C, weight_shape[2:], options), C) if transposed else (C, x)
    extra = _apart(weight_shape[2:], options)
    above, below = _as_samples(above, extra), _as_samples(below, extra)
    stride, padding, dilation = (options[name][extra:] for name in ("stride", "padding", "dilation"))
    weight = C.new_empty(*weight_shape[:2], *weight_shape[2 + extra :])
    found = torch.ops.aten.convolution_backward(
        above,
        below,
        weight,
        None,
        stride,
        padding,
        dilation,
        False,
        [0] * len(stride),
        options["groups"],
        [False, True, False],
    )
    gradient: Tensor = found[1]
    return gradient.view(tuple(weight_shape))


def _lengthened(above: Tensor, below: Tensor, kernel: Sequence[int], options: dict[str, Any]) -> Tensor:
    """`above` as long as a convolution of `below` is: a transposed one may lengthen its output beyond its stride.

    Zeros in the place of the missing elements add nothing to the gradient.
    """
    zeros: list[int] = []
    for d in reversed(range(len(kernel))):
        reach = below.shape[2 + d] + 2 * options["padding"][d] - options["dilation"][d] * (kernel[d] - 1) - 1
        zeros += [0, reach // options["stride"][d] + 1 - above.shape[2 + d]]
    return pad(above, zeros) if any(zeros) else above


def _apart(kernel: Sequence[int], options: dict[str, Any]) -> int:
    """Leading dimensions that the kernel leaves alone, as it does samples: a batch without a batch axis is one."""
    moves = zip(kernel, options["stride"], options["padding"], strict=True)
    trivial = [move == (1, 1, 0) for move in moves]
    return min(trivial.index(False) if False in trivial else len(trivial), len(trivial) - 1)


def _as_samples(t: Tensor, extra: int) -> Tensor:
    """[n, channels, *extra, *spatial] as [n extra, channels, *spatial]."""
    return t.movedim(1, 1 + extra).flatten(0, extra) if extra else t
