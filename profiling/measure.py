"""One method on one model: time by phase, memory, operations. Run as a program it is a process of its own.

python -m gramjd.profiling.measure RESULT.json < request.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gramjd.errors import GramjdError, InputError
from gramjd.profiling import memory
from gramjd.profiling.marks import Clock, ignore, tag
from gramjd.profiling.methods import METHODS, RefusalError, Step, said
from gramjd.profiling.target import Make, Work, build
from gramjd.profiling.timing import interleave, ratio, spread
from gramjd.text_table import digits

POINTS = 400  # of a timeline: enough for a plot as wide as a page

# What TorchJD and torch raise for models that they do not take. An error of the model itself shows up under `plain`.
REFUSALS = (RefusalError, GramjdError, RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError)


def measure(
    make: Make | str,
    method: str,
    *,
    m: int | None = None,
    aggregator: str = "UPGrad",
    rounds: int = 15,
    seconds: float = 10.0,
    limit: int | None = None,
) -> dict[str, Any]:
    """The numbers of one method as plain data; `{"refused": why}` where it does not take the model or the memory.

    Time is taken in turns with the plain step, so that the ratio of the two holds on a machine that drifts. Memory and
    operations come from steps of their own, as counting slows them down.

    Args:
        make: the user's function, or where it is.
        method: a key of `METHODS`.
        m: number of losses, handed to `make`.
        aggregator: class name of the aggregator.
        rounds: timed rounds at most.
        seconds: no further round is begun after this long.
        limit: bytes that the step may take beyond what the process holds with the model built; None for no limit.

    Raises:
        GramjdError: `make` is not what it should be. Errors of the model under the plain step pass through.
    """
    work = build(make, m)
    base = None if method == "plain" else build(make, m)  # its own: some methods leave hooks on a model
    with restricted(limit, work.device):
        try:
            return _measured(work, base, method, aggregator, rounds, seconds)
        except (*REFUSALS, MemoryError) as error:
            if is_out_of_memory(error):
                return {"m": work.m, "refused": "out of memory"}
            if method == "plain":
                raise
            return {"m": work.m, "refused": said(error)}


def _measured(
    work: Work, base: Work | None, method: str, aggregator: str, rounds: int, seconds: float
) -> dict[str, Any]:
    # torch's formulas for operations load triton, which nothing else here needs.
    from gramjd.profiling.flops import count_flops

    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        step = METHODS[method](work, aggregator)
        clock = Clock(work.device)
        resident = memory.resident_peak(lambda: _warm_up(step, clock, seconds))
    work.clear()
    line = memory.timeline(lambda: step(tag), work.device)
    work.clear()
    on_gpu = work.device.type == "cuda"
    peak = memory.peak_bytes(lambda: step(ignore), work.device) if on_gpu else line.peak
    return {
        "m": work.m,
        "peak_bytes": peak,
        "resident_bytes": resident,
        "flops": count_flops(lambda: step(ignore)),
        "timeline": dataclasses.asdict(thinned(line)),
        "warnings": [str(w.message) for w in noticed if issubclass(w.category, UserWarning)],
        **_times(
            step,
            None if base is None else METHODS["plain"](base, aggregator),
            work.device,
            min(rounds, max(1, int(seconds / sum(clock.seconds().values())))),
            seconds,
        ),
    }


def _warm_up(step: Step, clock: Clock, enough: float) -> None:
    """Two steps, the clock keeping the second's time, or one that takes long already."""
    step(clock)
    if sum(clock.seconds().values()) < enough:
        clock.stamps.clear()
        step(clock)


def _times(step: Step, plain: Step | None, device: torch.device, rounds: int, seconds: float) -> dict[str, Any]:
    spent: list[dict[str, float]] = []

    def clocked() -> None:
        clock = Clock(device)
        step(clock)
        spent.append(clock.seconds())

    steps: dict[str, Callable[[], object]] = {"this": clocked}
    if plain is not None:
        steps["plain"] = partial(plain, ignore)
    times = interleave(steps, rounds=rounds, warmup=1, seconds=seconds, at_least=0.02, device=device)
    phases = {phase: 1e3 * spread([s[phase] for s in spent[1:]]).median for phase in spent[0]}
    return {
        "milliseconds": spread([1e3 * t for t in times["this"]]).rounded(),
        "ratio": ratio(times["this"], times.get("plain", times["this"])).rounded(),
        "phases": {phase: digits(ms) for phase, ms in phases.items()},
        "rounds": len(times["this"]),
    }


def thinned(line: memory.Timeline, points: int = POINTS) -> memory.Timeline:
    """About as many points as asked for, keeping the highest level of each stretch."""
    size = max(1, -(-len(line.levels) // points))
    parts = [line.levels[n : n + size] for n in range(0, len(line.levels), size)]
    levels = [max(part, key=lambda point: point[1]) for part in parts]
    return memory.Timeline([(round(t, 7), level) for t, level in levels], [(round(t, 7), p) for t, p in line.marks])


@contextlib.contextmanager
def restricted(limit: int | None, device: torch.device) -> Iterator[None]:
    """Inside, allocations fail beyond `limit` more bytes than are held at the start; None changes nothing.

    Raises:
        InputError: the system cannot limit a process.
    """
    if limit is None:
        yield
    elif device.type == "cuda":
        total, held = torch.cuda.get_device_properties(device).total_memory, torch.cuda.memory_reserved(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (held + limit) / total), device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    else:
        try:
            import resource

            held = memory.kilobytes("VmData") * 1024
        except (ImportError, OSError):
            raise InputError("a memory limit needs Linux or a GPU; leave it out") from None
        # Of data, not of addresses: libraries reserve far more addresses than they ever use.
        before = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (held + limit, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if an allocation failed: torch says so in words on a CPU."""
    kinds = (MemoryError, torch.cuda.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error) or "bad_alloc" in str(error)


def main(argv: list[str]) -> int:
    """Read a request from standard input, write its result to the file named."""
    request = json.load(sys.stdin)
    sys.path[:] = request.pop("path")
    torch.set_num_threads(request.pop("threads"))
    result: Mapping[str, Any]
    try:
        result = measure(request.pop("make"), request.pop("method"), **request)
    except GramjdError as error:
        result = {"error": str(error), "kind": type(error).__name__}
    Path(argv[0]).write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
