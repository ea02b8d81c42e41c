"""The choice between implementations of an operation: its torch form, or a kernel for the device of its tensors.

    with gramjd.kernels.use_backend("triton"):
        gramjd.gram_backward(losses)

| backend | runs |
|---|---|
| `"torch"` | the torch form of every operation |
| `"triton"` | the kernel of every operation that has one; `BackendError` where it cannot run |
| `"auto"` | the kernel where it can run and was measured to be worth it on this architecture, else the torch form |
| `"onednn"` | the torch form of every operation, with large float32 products on a CPU by oneDNN |

What was measured is data: a list of operations per architecture of a GPU, in `devices.json` or in a file of one's own.
An architecture without a list takes the torch forms.

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
from gramjd.kernels import devices
from gramjd.kernels.table import TABLE

BACKENDS = ("auto", "torch", "onednn", "triton")
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


def implementation(operation: str, device: torch.device | str, *dtypes: torch.dtype) -> Callable[..., Any] | None:
    """The function that is to run instead of the torch form, or None for the torch form.

    Args:
        operation: as in `TABLE`.
        device: that the operands are on.
        dtypes: of the operands and of the result.

    Raises:
        BackendError: the backend is `"triton"`, the operation has a kernel, and the kernel cannot run.

    >>> implementation("outer.product", "cpu", torch.float32) is None
    True
    """
    backend = _backend.get()
    if backend in ("torch", "onednn"):
        return None
    device = torch.device(device)
    if backend == "auto" and not _worth_it(operation, device):
        return None
    obstacle = _obstacle(operation, device.type, dtypes)
    if obstacle is None:
        return _function(TABLE[operation, device.type])
    if backend == "triton" and any(name == operation for name, _ in TABLE):
        raise BackendError(f'backend="triton" cannot run {operation}: {obstacle}; use backend="auto" or "torch"')
    return None


def _worth_it(operation: str, device: torch.device) -> bool:
    return (operation, device.type) in TABLE and operation in devices.kernels(devices.architecture(device))


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
