"""Marks: where the phases of a step begin. A step calls `mark("walk")`, and `mark` is one of the three here."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch.profiler import record_function

Mark = Callable[[str], None]
PHASES = ("forward", "walk", "weights", "backward")
END = "end"
PREFIX = "gramjd::phase::"


def ignore(phase: str) -> None:
    """A mark that leaves no trace."""


def tag(phase: str) -> None:
    """A mark in the recording of torch's profiler: an event without length, named `PREFIX + phase`."""
    with record_function(PREFIX + phase):
        pass


class Clock:
    """A mark that reads the clock, after waiting for the device when it is a GPU.

    >>> clock = Clock()
    >>> for phase in ("forward", "backward", "end"):
    ...     clock(phase)
    >>> list(clock.seconds())
    ['forward', 'backward']
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Start with no marks; `device` is waited for."""
        self.device = torch.device(device)
        self.stamps: list[tuple[str, float]] = []

    def __call__(self, phase: str) -> None:
        """The phase begins now."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.stamps.append((phase, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """How long each phase took until the next mark; the last mark ends the step."""
        spent: dict[str, float] = {}
        for (phase, start), (_, stop) in pairwise(self.stamps):
            spent[phase] = spent.get(phase, 0.0) + stop - start
        return spent
