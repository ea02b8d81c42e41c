"""Products of two matrices, by whichever of PyTorch's CPU libraries is faster here.

PyTorch multiplies float32 matrices by MKL, which leaves half of what AVX-512 can do unused on CPUs that Intel did not
make. oneDNN, which PyTorch brings for convolutions, does not: it was 1.7 to 2.5 times as fast on an AMD EPYC of the
fifth generation for all but small products. Which one is faster is measured once a process, in a few milliseconds.
Batches of products, other dtypes, GPUs and `use_backend("torch")` are left to PyTorch.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

from gramjd.kernels.dispatch import current_backend

# What oneDNN's call costs more is made up for by products of at least so many multiply-adds, none of whose sizes is
# smaller than `THIN`; sums over more than `LONG` numbers are as fast in MKL. It copies a left operand that is not
# contiguous, which pays from `WIDE` columns of the right one on, and is very slow where the right one has gaps.
LEAST, THIN, LONG, WIDE = 3 << 20, 8, 1 << 18, 256
# Sizes of the product that is measured, how often, and how much faster oneDNN has to be to be taken.
TRIAL, TIMES, MARGIN = (256, 512, 256), 5, 1.25


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` [M, N] for matrices a [M, K] and b [K, N], in full precision.

    >>> product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([[11.]])
    """
    return by_onednn(a, b) if _suits_onednn(a, b) else a @ b


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """`out += a @ b`, for out [M, N]."""
    if _suits_onednn(a, b):
        out.add_(by_onednn(a, b))
    else:
        out.addmm_(a, b)


def _suits_onednn(a: Tensor, b: Tensor) -> bool:
    (M, K), N = a.shape, b.shape[1]
    if not (pays(M, K, N) and a.dtype == b.dtype == torch.float32 and a.device.type == "cpu"):
        return False
    dense = b.is_contiguous() or b.mT.is_contiguous()
    return dense and (N >= WIDE or a.is_contiguous()) and library() == "onednn"


def pays(M: float, K: float, N: float) -> bool:
    """Whether oneDNN makes up for what its call costs more, for [M, K] by [K, N]."""
    return M * K * N >= LEAST and min(M, K, N) >= THIN and K <= LONG


def library() -> str:
    """`"onednn"` or `"torch"` (as PyTorch does): how large float32 products on the CPU are made.

    As PyTorch does also where it was told that products may be less precise, or to do without oneDNN.
    """
    allowed = current_backend() != "torch" and torch.backends.mkldnn.enabled and _full_precision()
    return "onednn" if allowed and _onednn_is_faster() else "torch"


def _full_precision() -> bool:
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if settings is None:  # before torch 2.9
        return torch.get_float32_matmul_precision() == "highest"
    return settings.fp32_precision in ("none", "ieee")


def by_onednn(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` by oneDNN."""
    saved = a.numel() - b.numel() - a.shape[0] * b.shape[1]
    if saved > 0 and not a.is_contiguous() and a.mT.is_contiguous():
        return _linear(b.mT, a).mT  # so that the smaller operand is copied; the result lies transposed
    return _linear(a, b.mT)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return found


@cache
def _onednn_is_faster() -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    M, K, N = TRIAL
    with torch.inference_mode(False), torch.no_grad():
        a, b = (torch.ones(*shape, dtype=torch.float32, device="cpu") for shape in ((M, K), (K, N)))
        if not torch.equal(by_onednn(a, b), a @ b):
            return False
        times: dict[bool, float] = {True: float("inf"), False: float("inf")}
        for _ in range(TIMES):
            for which in times:
                start = time.perf_counter()
                _ = by_onednn(a, b) if which else a @ b
                times[which] = min(times[which], time.perf_counter() - start)
    return times[False] > MARGIN * times[True]
