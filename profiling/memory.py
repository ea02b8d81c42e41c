"""Peak memory of a piece of code, counted and not estimated."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler import profile

from gramjd.engine import _torch
from gramjd.profiling.marks import PREFIX

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Timeline:
    """Bytes alive beyond those before the start, change by change, and the marks that were passed.

    Args:
        levels: (seconds since the start, bytes alive from then on).
        marks: (seconds since the start, phase that begins there).
    """

    levels: list[tuple[float, int]]
    marks: list[tuple[float, str]]

    @property
    def peak(self) -> int:
        """The highest level, and no less than zero."""
        return max(0, 0, *(level for _, level in self.levels))


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
    return timeline(work).peak


def timeline(work: Callable[[], object], device: torch.device | str = "cpu") -> Timeline:
    """Every allocation and release of `work()` on the device in order, with the marks of `marks.tag`.

    >>> timeline(lambda: torch.zeros(16)).levels[-1][1]
    0
    """
    kind = torch.device(device).type
    # The profiler writes a line to stderr at each start and stop unless told otherwise before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(profile_memory=True) as recording:
        work()
    results = recording.kineto_results
    assert results is not None
    changes = sorted(_changes(_torch.recorded_events(results), kind), key=lambda change: change[0])
    tags = [e for e in results.events() if e.name().startswith(PREFIX)]
    marks = sorted((e.start_ns(), e.name().removeprefix(PREFIX)) for e in tags)
    start = min((at for at, *_ in [*changes[:1], *marks[:1]]), default=0)
    levels, alive = [], set()
    level = 0
    for at, address, nbytes in changes:
        if nbytes > 0:
            alive.add(address)
        elif address not in alive:
            continue  # from before: seen only if an earlier recording saw it come
        else:
            alive.remove(address)
        level += nbytes
        levels.append(((at - start) / 1e9, level))
    return Timeline(levels, [((at - start) / 1e9, phase) for at, phase in marks])


def _changes(events: Sequence[Any], kind: str) -> Iterator[tuple[int, int, int]]:
    """Time, address and bytes of each allocation (negative: release) on a kind of device."""
    for event in events:
        tag, fields = event.typed
        if tag == _torch.EventType.Allocation and fields.device.type == kind:
            yield event.start_time_ns, fields.ptr, fields.alloc_size
        yield from _changes(event.children, kind)


def _peak_bytes_cuda(work: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return max(0, torch.cuda.max_memory_allocated(device) - before)


def resident_peak(work: Callable[[], object]) -> int | None:
    """How far the resident size of the whole process rises above where it stood; None where the system does not say.

    Unlike `peak_bytes` this sees libraries' own buffers, and what the C library keeps of memory given back. It only
    tells in a process that has not done the same work before.
    """
    if not STATUS.exists():
        return _resident_by_usage(work)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present size
    before = kilobytes("VmRSS")
    work()
    return max(0, kilobytes("VmHWM") - before) * 1024


def kilobytes(name: str) -> int:
    """A size that Linux reports of this process, such as `VmRSS`.

    Raises:
        OSError: on another system.
    """
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def _resident_by_usage(work: Callable[[], object]) -> int | None:
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
