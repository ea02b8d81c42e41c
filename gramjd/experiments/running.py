"""What the commands of the experiments share: the number of threads, the progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gramjd.extras import require


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let PyTorch use `number` threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def progress(unit: str, items: Iterable[Any] | None = None, total: int | None = None, title: str | None = None) -> Any:
    """tqdm's bar on stderr, over `items` or up to `total`; none where stderr is a file and not a terminal.

    Raises:
        MissingExtraError: tqdm is not installed.
    """
    return require("tqdm", "demo").tqdm(items, title, total, unit=unit, disable=None, file=sys.stderr)
