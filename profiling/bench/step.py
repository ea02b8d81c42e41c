"""Time and memory of one training step, over those of plain gradient descent: what `gramjd bench` measures.

A step is: forward, `.grad`, SGD. Contenders take turns in one process; each has its own copy of the model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import gramjd
from gramjd.errors import InputError
from gramjd.kernels.dispatch import chosen, use_backend
from gramjd.profiling.bench.cases import CASES, Case
from gramjd.profiling.environment import describe, products_used
from gramjd.profiling.marks import ignore
from gramjd.profiling.memory import peak_bytes
from gramjd.profiling.methods import METHODS, RefusalError, torchjd_gramian
from gramjd.profiling.target import Work
from gramjd.profiling.timing import interleave, is_wide, ratio, spread
from gramjd.text_table import digits

BASE = "plain"
RATE = 1e-4  # small: hundreds of steps on one batch should not leave the region where the case is typical


class Contender(NamedTuple):
    """A method of `METHODS` with an aggregator; `backend`: of gramjd's kernels, None for the one in force."""

    method: str
    aggregator: str = "Mean"
    backend: str | None = None


CONTENDERS = {
    "plain": Contender("plain"),
    "gramjd Mean": Contender("gramjd"),
    "gramjd UPGrad": Contender("gramjd", "UPGrad"),
    "gramjd Mean reuse": Contender("gramjd reuse"),
    "torchjd Mean": Contender("torchjd autogram"),
    "torchjd UPGrad": Contender("torchjd autogram", "UPGrad"),
}


def select(names: str | None) -> list[str]:
    """Names of contenders from a list by commas; None for all.

    Raises:
        InputError: an unknown name, or the plain step is missing.
    """
    found = list(CONTENDERS) if names is None else names.split(",")
    if BASE not in found or not set(found) <= set(CONTENDERS):
        raise InputError(f"got contenders {names!r}: {BASE!r} must be among them, and all of {', '.join(CONTENDERS)}")
    return found


class Prepared(NamedTuple):
    """One contender on its copy of a case: `take()` takes a step, `clear()` drops the gradients."""

    take: Callable[[], None]
    clear: Callable[[], None]


def step_of(work: Work, contender: Contender) -> Prepared:
    """A contender with an optimiser.

    Raises:
        RefusalError: the contender does not take this model.
    """
    step = METHODS[contender.method](work, contender.aggregator)
    optimizer = torch.optim.SGD(work.parameters.values(), lr=RATE)

    def take() -> None:
        with chosen(contender.backend):
            step(ignore)
        optimizer.step()

    return Prepared(take, work.clear)


def gramian_difference(work: Work) -> float | None:
    """Relative Frobenius distance of TorchJD's Gramian from ours; None where it refuses the model.

    Ours is tested against a float64 Jacobian, so a distance far above rounding means that theirs is another matrix.
    """
    ours = gramjd.gramian(work.losses())
    try:
        theirs = torchjd_gramian(work)(work.vector())
    except RefusalError:
        return None
    return digits(float(torch.linalg.norm(theirs - ours) / torch.linalg.norm(ours)), 2)


def measure(
    case: Case, *, device: str, rounds: int, seconds: float, contenders: Sequence[str] | None = None
) -> dict[str, Any]:
    """Times, ratios to the plain step and peak memory of every contender, as plain data.

    Args:
        case: what to train.
        device: where.
        rounds: timed rounds at most.
        seconds: no further round is begun after this long.
        contenders: keys of `CONTENDERS`, the plain step among them; default: all.
    """
    steps, results = _try_all(case, device, contenders or tuple(CONTENDERS))
    times = interleave(
        {name: step.take for name, step in steps.items()}, rounds=rounds, seconds=seconds, at_least=0.05, device=device
    )
    for name, step in steps.items():
        step.clear()
        results[name] = {
            "milliseconds": spread([1e3 * t for t in times[name]]).rounded(),
            "ratio": ratio(times[name], times[BASE]).rounded(),
            "rounds": len(times[name]),
            "peak_bytes": peak_bytes(step.take, device),
        }
    return results


def _try_all(case: Case, device: str, contenders: Sequence[str]) -> tuple[dict[str, Prepared], dict[str, Any]]:
    """A first step of each contender; those that refuse the model are reported instead of run."""
    steps: dict[str, Prepared] = {}
    results: dict[str, Any] = {}
    for name in contenders:
        try:
            step = step_of(case.build(device), CONTENDERS[name])
            step.take()
        except RefusalError as error:
            results[name] = {"refused": str(error)}
        else:
            steps[name] = step
    return steps, results


def run(
    names: Sequence[str],
    *,
    device: str,
    rounds: int,
    seconds: float,
    path: Path | None,
    tests: str = "not run",
    contenders: Sequence[str] = tuple(CONTENDERS),
    backend: str = "auto",
) -> dict[str, Any]:
    """Measure the named cases; print a line each and write `path` after each, so that a stop loses one case."""
    report: dict[str, Any] = {
        "environment": describe(device=device),
        "products": products_used(backend),
        "settings": {"rounds": rounds, "seconds_per_case": seconds, "warmup": 3, "device": device, "backend": backend},
        "tests": tests,
        "cases": {},
    }
    for name in names:
        case = CASES[name]
        print(f"{name}: {case.title}, for {seconds:g} s or more ...", file=sys.stderr, flush=True)
        with use_backend(backend):
            found = measure(case, device=device, rounds=rounds, seconds=seconds, contenders=contenders)
        report["cases"][name] = {"title": case.title, "m": case.m, "contenders": found}
        if any(contender.startswith("torchjd") for contender in contenders):
            report["cases"][name]["torchjd_gramian_difference"] = gramian_difference(case.build(device))
        print(_line(name, report["cases"][name]["contenders"]), flush=True)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _line(name: str, results: Mapping[str, Any]) -> str:
    cells = [f"{name:12} plain {results[BASE]['milliseconds']['median']:8.2f} ms {_megabytes(results[BASE])}"]
    for contender, result in results.items():
        if contender != BASE:
            cells.append(
                f"{contender} refused"
                if "refused" in result
                else f"{contender} {result['ratio']['median']:6.2f}x {_megabytes(result)}"
            )
    wide = [name for name, result in results.items() if "ratio" in result and is_wide(result["ratio"])]
    if wide:
        cells.append(f"noise: quartiles of {', '.join(wide)} lie far apart, so the machine is busy or rounds are few")
    return " | ".join(cells)


def _megabytes(result: Mapping[str, Any]) -> str:
    return f"{result['peak_bytes'] / 1e6:7.1f} MB"
