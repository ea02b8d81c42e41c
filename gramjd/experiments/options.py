"""What the sub-commands of `gramjd paper` share: numbers in options, the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gramjd.arguments import count, positive, positives, rate, seconds

__all__ = ["count", "positive", "positives", "rate", "seconds", "threads"]


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let PyTorch use `number` threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
