"""Memory: how many bytes may be taken for what, and how many are."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class MemoryLimits:
    """Bytes that a computation may take beyond what plain training does.

    `rows`: stacked rows alive at once, where there is no batch axis. `kept`: factors held for an update. `temporaries`:
    the largest one of a parameter's products; None for a tenth of what plain training holds.
    """

    rows: float
    kept: float = math.inf
    temporaries: float | None = None

    @classmethod
    def of(cls, losses: Sequence[Tensor], memory_budget: int | None) -> MemoryLimits:
        """What a user allows: the same number for each of the three; by default a quarter of the device's memory."""
        limit = memory_of(losses[0].device) // 4 if memory_budget is None else memory_budget
        return cls(limit, limit, memory_budget)


NO_LIMITS = MemoryLimits(math.inf)


def memory_of(device: torch.device) -> int:
    """Bytes of the device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return _main_memory()


@cache
def _main_memory() -> int:
    return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))


class OverBudgetError(Exception):
    """Stacked rows would take more than the limit; the caller walks for fewer losses at a time."""


@dataclass
class Meter:
    """Counts the bytes of stacked rows of one walk; `peak` is the most that was asked for.

    `foresee` returns the peak of the whole walk. It is called once a part of the limit is reached, so that a walk that
    cannot end is given up before much is allocated, and one with few stacked rows is not planned at all.
    """

    limits: MemoryLimits
    foresee: Callable[[], int] | None = None
    alive: int = field(init=False, default=0)
    peak: int = field(init=False, default=0)

    def charge(self, nbytes: int) -> None:
        """Take `nbytes` more for a moment. Raises OverBudgetError before they are allocated."""
        needed = self.alive + nbytes
        self.peak = max(self.peak, needed)
        if needed > self.limits.rows:
            raise OverBudgetError
        if self.foresee is not None and needed > self.limits.rows / 8:
            foresee, self.foresee = self.foresee, None
            if foresee() > self.limits.rows:
                raise OverBudgetError
