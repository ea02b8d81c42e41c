"""Thread count for matrices that are too small to share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Up to this m a second thread gains little, and costs milliseconds per call when another process holds its core.
_SMALL = 128


@contextmanager
def one_thread_if_small(m: int, device: torch.device) -> Iterator[None]:
    """Run CPU work on matrices of size `m` in the calling thread alone when m is small; restored on the way out."""
    if m > _SMALL:
        yield
        return
    with one_thread(device):
        yield


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Run CPU work in the calling thread alone; restored on the way out."""
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
