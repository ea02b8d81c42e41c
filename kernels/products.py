"""Products of two matrices, by one of PyTorch's two CPU libraries.

PyTorch multiplies float32 matrices by MKL, which leaves half of what AVX-512 can do unused on some CPUs that Intel did
not make. oneDNN, which PyTorch brings for convolutions, was 2.2 times as fast on an AMD EPYC of the fifth generation
for all but small products, and hardly faster on one of the fourth. The two round differently, so which one computes
large float32 products on a CPU is a stated choice:

- backend `"onednn"`: oneDNN; `BackendError` where it cannot be used.
- backend `"torch"`: PyTorch's own choice.
- `"auto"` and `"triton"`: what the file says that `gramjd.kernels.cost.load` read. Without one: PyTorch's own choice
  under `torch.use_deterministic_algorithms`, else what `devices.json` says of this CPU. A CPU that it does not name:
  PyTorch's own choice.

Nothing is measured for it: the same machine, settings and files give the same choice in every process.
Batches of products, other dtypes and GPUs are left to PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.engine import _torch
from gramjd.errors import BackendError
from gramjd.kernels.devices import loaded, shipped
from gramjd.kernels.dispatch import current_backend
from gramjd.kernels.machine import this_cpu
from gramjd.kernels.tracing import whole

# The call of oneDNN costs more. It pays from so many multiply-adds on, if no size is below `THIN`; MKL is as fast for
# sums of more than `LONG` numbers. oneDNN copies a left operand that is not contiguous, which pays from `WIDE` columns
# of the right one on, and it is very slow where the right one has gaps.
LEAST, THIN, LONG, WIDE = 3 << 20, 8, 1 << 18, 256


class Products(NamedTuple):
    """The library of large float32 products and the reason for it; `print` shows both.

    >>> print(Products("onednn", "devices.json: AMD family 26 model 2"))
    oneDNN (devices.json: AMD family 26 model 2)
    """

    library: str
    reason: str

    @property
    def name(self) -> str:
        """The library in words."""
        if self.library == "onednn":
            return "oneDNN"
        return "PyTorch's own, MKL" if torch.backends.mkl.is_available() else "PyTorch's own"

    def __str__(self) -> str:
        """The library in words, and the reason."""
        return f"{self.name} ({self.reason})"


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
    return dense and (N >= WIDE or a.is_contiguous()) and library() == "onednn" and not _torch.is_spread(b)


def pays(M: float, K: float, N: float) -> bool:
    """Returns True if oneDNN makes up for its dearer call, for [M, K] by [K, N]."""
    return M * K * N >= LEAST and min(M, K, N) >= THIN and K <= LONG


def current_products() -> Products:
    """The library in force for large float32 products on the CPU, by the rules above, with the reason.

    In `"auto"` it is PyTorch's own also where `torch.backends` says that products may be less precise, or that oneDNN
    is not to be used, and in a build of PyTorch without oneDNN.

    Raises:
        BackendError: the backend is `"onednn"`, and one of these holds.

    >>> from gramjd.kernels import use_backend
    >>> with use_backend("torch"):
    ...     current_products().library
    'torch'
    """
    backend = current_backend()
    if backend == "torch":
        return _BY_TORCH
    obstacle = _obstacle()
    if backend == "onednn":
        if obstacle:
            raise BackendError(f'backend="onednn" cannot run: {obstacle}; use backend="auto" or "torch"')
        return _BY_ONEDNN
    choice = _stated()
    return Products("torch", obstacle) if choice.library == "onednn" and obstacle else choice


_BY_TORCH, _BY_ONEDNN = Products("torch", 'backend "torch"'), Products("onednn", 'backend "onednn"')


_fixed: ContextVar[str | None] = ContextVar("gramjd_library", default=None)


def library() -> str:
    """`"onednn"` or `"torch"`: that of `current_products`."""
    return _fixed.get() or current_products().library


@contextmanager
def library_fixed() -> Iterator[None]:
    """Look up the library once for a `with` block, which makes many products and changes no setting."""
    token = _fixed.set(library())
    try:
        yield
    finally:
        _fixed.reset(token)


def _stated() -> Products:
    """The choice by the files, without regard to PyTorch's build and settings."""
    own = loaded()
    if own is not None:
        return Products(own.products, f"the file that was loaded: {own.cpu}")
    if torch.are_deterministic_algorithms_enabled():
        return Products("torch", "deterministic algorithms")
    return _of_cpu()


@cache
def _of_cpu() -> Products:
    cpu = this_cpu()
    entry = shipped(cpu)
    reason = f"devices.json: {cpu}" if entry.cpu else f"devices.json does not name {cpu}"
    return Products(entry.products, reason)


def _obstacle() -> str | None:
    """The reason why oneDNN cannot be used, or None."""
    if not torch.backends.mkldnn.enabled:
        return "torch.backends.mkldnn is disabled"
    if not _full_precision():
        return "torch.backends lets products be less precise"
    return None if onednn_works() else "this build of PyTorch has no product by oneDNN"


def _full_precision() -> bool:
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if settings is None:  # before torch 2.9
        return torch.get_float32_matmul_precision() == "highest"
    return settings.fp32_precision in ("none", "ieee")


def _turned(a: Tensor, b: Tensor) -> bool:
    """Returns True if the product is computed as `(b^T a^T)^T`, so that the smaller operand is copied."""
    saved = a.numel() - b.numel() - a.shape[0] * b.shape[1]
    return saved > 0 and not a.is_contiguous() and a.mT.is_contiguous()


def _like_product(a: Tensor, b: Tensor) -> Tensor:
    (M, _), N = a.shape, b.shape[1]
    return a.new_empty(N, M).mT if _turned(a, b) else a.new_empty(M, N)


@whole("product(Tensor a, Tensor b) -> Tensor", _like_product)
def by_onednn(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` by oneDNN."""
    if _turned(a, b):
        return _torch.product_by_onednn(b.mT, a).mT  # the result lies transposed
    return _torch.product_by_onednn(a, b.mT)


@cache
def onednn_works() -> bool:
    """Returns True if this build of PyTorch has the function, and a product of whole numbers by it is right."""
    if not torch.backends.mkldnn.is_available() or _torch.onednn_linear is None:
        return False
    # Hidden from an active tracer or counter of memory, and not changed by autocast.
    with _torch.untraced(), torch.inference_mode(False), torch.no_grad():
        a = torch.arange(16, dtype=torch.float32, device="cpu").reshape(4, 4)
        return torch.equal(by_onednn(a, a), (a[:, :, None] * a).sum(1))
