"""The choice between implementations of an operation: its torch form, or a kernel for the device of its tensors.

    with gramjd.kernels.use_backend("triton"):
        gramjd.gram_backward(losses)

| backend | runs |
|---|---|
| `"torch"` | the torch form of every operation |
| `"triton"` | the kernel of every operation that has one; `BackendError` where it cannot run |
| `"auto"` | the kernel where it can run and was measured to beat the torch form on a GPU, the torch form elsewhere |
| `"onednn"` | the torch form of every operation, with large float32 products on a CPU by oneDNN |

The library of large products on a CPU in `"auto"` and `"triton"` is explained in `products`.

Modules that need Triton are imported when one of their kernels is first used, and never for tensors on a CPU.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch

from gramjd.errors import BackendError, InputError

BACKENDS = ("auto", "torch", "onednn", "triton")
# (operation, device type) to "module:function", whose signature is that of the torch form.
TABLE: dict[tuple[str, str], str] = {
    ("outer.product", "cuda"): "gramjd.kernels.triton.symmetric:product",
    ("outer.pairwise", "cuda"): "gramjd.kernels.triton.pairwise:pairwise",
    ("outer.rows", "cuda"): "gramjd.kernels.triton.chunks:rows",
    ("cross.product", "cuda"): "gramjd.kernels.triton.cross:product",
    ("norms.pair", "cuda"): "gramjd.kernels.triton.norms:pair",
    ("gathered.pairwise", "cuda"): "gramjd.kernels.triton.pairwise:gathered",
    ("rows", "cuda"): "gramjd.kernels.triton.symmetric:gram_rows",
    ("convolution.rows", "cuda"): "gramjd.kernels.triton.convolution:rows",
    ("weighted.outer", "cuda"): "gramjd.kernels.triton.weighted:weighted_outer",
}
# Operations whose kernel the benchmark of kernels found faster than the torch form on a GPU. Until it has run: none.
MEASURED: set[str] = set()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The oldest release that the kernels were compiled with.
OLDEST_TRITON = (3, 3)

_backend: ContextVar[str] = ContextVar("gramjd_backend", default="auto")


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Choose the implementations of the kernels within a `with` block, in this thread and in this task.

    Args:
        backend: `"auto"`, `"torch"`, `"onednn"` or `"triton"`, as in the table above.

    Raises:
        InputError: `backend` is none of these.

    >>> with use_backend("torch"):
    ...     current_backend()
    'torch'
    >>> current_backend()
    'auto'
    """
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is not known: use one of {', '.join(map(repr, BACKENDS))}")
    token = _backend.set(backend)
    try:
        yield
    finally:
        _backend.reset(token)


def chosen(backend: str | None) -> AbstractContextManager[None]:
    """`use_backend(backend)`; for None the backend in force stays."""
    return nullcontext() if backend is None else use_backend(backend)


def current_backend() -> str:
    """The backend in force."""
    return _backend.get()


def implementation(operation: str, device: str, *dtypes: torch.dtype) -> Callable[..., Any] | None:
    """The function that is to run instead of the torch form, or None for the torch form.

    Args:
        operation: as in `TABLE`.
        device: the type of the device that the operands are on.
        dtypes: of the operands and of the result.

    Raises:
        BackendError: the backend is `"triton"`, the operation has a kernel, and the kernel cannot run.

    >>> implementation("outer.product", "cpu", torch.float32) is None
    True
    """
    backend = _backend.get()
    if backend in ("torch", "onednn") or (backend == "auto" and operation not in MEASURED):
        return None
    obstacle = _obstacle(operation, device, dtypes)
    if obstacle is None:
        return _function(TABLE[operation, device])
    if backend == "triton" and any(name == operation for name, _ in TABLE):
        raise BackendError(f'backend="triton" cannot run {operation}: {obstacle}; use backend="auto" or "torch"')
    return None


def _obstacle(operation: str, device: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    if (operation, device) not in TABLE:
        devices = sorted({where for name, where in TABLE if name == operation})
        return f"its tensors are on {device}, and there are kernels for {', '.join(devices) or 'no device'}"
    for dtype in dtypes:
        if dtype not in DTYPES:
            allowed = ", ".join(_short(allowed) for allowed in DTYPES)
            return f"its numbers are {_short(dtype)}, and the kernels take {allowed}"
    return _without_triton() if ".triton." in TABLE[operation, device] else None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _without_triton() -> str | None:
    """The reason why Triton's kernels cannot be compiled, or None."""
    try:
        found: str = importlib.import_module("triton").__version__
    except ImportError:
        return "triton is not installed (pip install 'gramjd[triton]')"
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < OLDEST_TRITON:
        return f"triton is {found}, and the kernels need {'.'.join(map(str, OLDEST_TRITON))} or newer"
    return None


@functools.cache
def _function(target: str) -> Callable[..., Any]:
    module, name = target.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
