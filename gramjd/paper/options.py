"""What the sub-commands' options share: parsing of numbers, number of threads."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    return _at_least(1, text)


def count(text: str) -> int:
    """A whole number, 0 or more."""
    return _at_least(0, text)


def positives(text: str) -> tuple[int, ...]:
    """Whole numbers by commas, 1 or more each.

    >>> positives("8,32")
    (8, 32)
    """
    return tuple(positive(part) for part in text.split(","))


def rate(text: str) -> float:
    """A learning rate: positive and finite."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive number")
    return value


def seconds(text: str) -> float:
    """A length of time: a number of seconds, or with the unit s, m or h.

    >>> seconds("20m"), seconds("90"), seconds("0")
    (1200.0, 90.0, 0.0)
    """
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a time such as 90s, 20m or 1.5h")
    return value


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let PyTorch use `number` threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"got {value}, expected {least} or more")
    return value
