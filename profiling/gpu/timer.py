"""Medians of short pieces of work: by CUDA's events on a GPU, by the clock elsewhere."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch.autograd.profiler import profile

Work = Callable[[], object]
LEAST, MOST = 5, 200  # timed calls
LONG = 300.0  # milliseconds from which one call says enough


def milliseconds(work: Work, device: str, seconds: float = 0.1) -> float:
    """Median milliseconds of a call, over as many calls as fit into `seconds`, from 5 to 200; one if it is long.

    On a GPU the time between two events around the call; the host runs ahead, so that launches count only where they
    are slower than the kernels.

    >>> milliseconds(lambda: None, "cpu", 0.0) < 1000
    True
    """
    work()
    first = _timed(work, device, 1)[0]
    if first > LONG:
        return first
    calls = max(LEAST, min(MOST, int(1e3 * seconds / max(first, 1e-3))))
    return statistics.median(_timed(work, device, calls))


def _timed(work: Work, device: str, calls: int) -> list[float]:
    if device != "cuda":
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - start))
        return times
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
    torch.cuda.synchronize()
    for begin, end in marks:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in marks]


def launches(work: Work, device: str) -> int:
    """Kernels and copies that a call puts on the GPU; on a CPU the operations that torch dispatches.

    >>> launches(lambda: torch.ones(2) + 1, "cpu") >= 2
    True
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr at its start and end
    work()
    on_gpu = device == "cuda"
    with profile(use_device="cuda" if on_gpu else None, use_cpu=not on_gpu, use_kineto=True) as recording:
        work()
        if on_gpu:
            torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    # The ranges of `gram_backward` are drawn on the GPU's line too.
    return sum(e.device_type == kind and not e.name.startswith("gramjd::") for e in recording.function_events or ())
