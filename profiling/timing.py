"""Times of several pieces of code, taken in turns so that they can be compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from gramjd.text_table import digits

WIDE = 0.25  # of the median: quartiles further apart are called noise
FEWEST = 5  # rounds, below which quartiles say nothing


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a set of measurements."""

    median: float
    low: float
    high: float

    def rounded(self) -> dict[str, float]:
        """As results are written down."""
        return {name: digits(number) for name, number in asdict(self).items()}


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles.

    >>> spread([5.0, 1.0, 2.0, 4.0, 3.0])
    Spread(median=3.0, low=2.0, high=4.0)
    """
    points = torch.tensor(values, dtype=torch.float64)
    low, median, high = torch.quantile(points, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Spread(median, low, high)


def is_wide(found: Mapping[str, float]) -> bool:
    """Returns True if quartiles are so far apart that the median should be read with care.

    >>> is_wide({"median": 2.0, "low": 1.9, "high": 2.1}), is_wide({"median": 2.0, "low": 1.6, "high": 2.3})
    (False, True)
    """
    return found["high"] - found["low"] > WIDE * found["median"]


def ratio(times: Sequence[float], base: Sequence[float]) -> Spread:
    """Spread of `times[r] / base[r]` over the rounds: what slows both down in a round cancels out.

    >>> ratio([2.0, 4.0, 8.0], [1.0, 2.0, 2.0]).median
    2.0
    """
    return spread([t / b for t, b in zip(times, base, strict=True)])


def interleave(
    steps: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 3,
    seconds: float | None = None,
    at_least: float = 0.0,
    fewest: int = FEWEST,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Time every step once per round, in one process, each round starting with another step.

    Machines drift: the times of two programs run one after the other do not compare, those of one round do.

    Args:
        steps: name to callable.
        rounds: timed rounds.
        warmup: rounds before them that are not timed.
        seconds: stop early once the timed rounds have taken this long, though not before `fewest` of them.
        at_least: in each round call a step over and over for this many seconds and keep the median: a quick step
            would otherwise mostly pay for the caches that a slow one before it left cold.
        fewest: rounds that are taken whatever they cost.
        device: waited for before each clock reading when it is a GPU.
        clock: in seconds, None for `time.perf_counter`; `time.process_time` leaves out what other programs take of a
            CPU that is shared.

    Returns:
        Name to its times in seconds, one a round.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for name in names:
            steps[name]()
    start = time.perf_counter()
    for done in range(rounds):
        if seconds is not None and done >= fewest and time.perf_counter() - start > seconds:
            break
        shift = done % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(_repeated(steps[name], at_least, torch.device(device), clock or time.perf_counter))
    return times


def _repeated(step: Callable[[], object], at_least: float, device: torch.device, clock: Callable[[], float]) -> float:
    times = [_timed(step, device, clock)]
    while sum(times) < at_least:
        times.append(_timed(step, device, clock))
    return spread(times).median


def _timed(step: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start
