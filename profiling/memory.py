"""Peak memory of a piece of code, counted and not estimated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch
from torch.autograd.profiler import profile


def peak_bytes(work: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Most bytes of tensors alive at once during `work()`, beyond those alive before it.

    On a CPU every allocation and release is counted by torch's profiler, which slows the work down: never
    time a call in here. Memory that was allocated before and is released inside does not count as a gain.

    Args:
        work: called once; what it returns is released before the count ends, and cannot change the peak.
        device: where the work allocates.

    Returns:
        Bytes. 16 elements of float32 are 64, on a GPU rounded up to the allocator's blocks of 512.

    >>> peak_bytes(lambda: torch.zeros(16))
    64
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _peak_bytes_cuda(work, device)
    # The profiler writes a line to stderr at each start and stop unless told otherwise before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(profile_memory=True) as recording:
        work()
    results = recording.kineto_results
    assert results is not None
    events = [event for event in results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return highest_sum(event.nbytes() for event in events)


def highest_sum(changes: Iterable[int]) -> int:
    """Highest running sum of a sequence of signed changes, and no less than zero.

    >>> highest_sum([4, 2, -4, 3, -5])
    6
    """
    level = highest = 0
    for change in changes:
        level += change
        highest = max(highest, level)
    return highest


def _peak_bytes_cuda(work: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return max(0, torch.cuda.max_memory_allocated(device) - before)
