"""Time and memory of one training step, over those of plain gradient descent.

    python -m gramjd.profiling.bench_step --cases all --json profiling/results/step_cpu.json
    python -m gramjd.profiling.bench_step --cases all --keep-freed --json profiling/results/step_cpu_kept.json
    python -m gramjd.profiling.bench_step --backend torch --contenders "plain,gramjd Mean,gramjd Mean reuse"

A step is: forward, `.grad`, SGD. Contenders take turns in one process; each has its own copy of the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gramjd.kernels.dispatch import BACKENDS, use_backend
from gramjd.profiling.cases import CASES, Case, select
from gramjd.profiling.contenders import CONTENDERS, Backward, RefusalError, gramian_difference
from gramjd.profiling.environment import describe, products_used, restart_keeping_freed
from gramjd.profiling.memory import peak_bytes
from gramjd.profiling.timing import interleave, ratio, spread

BASE = "plain"
RATE = 1e-4  # small: hundreds of steps on one batch should not leave the region where the case is typical


@dataclasses.dataclass(frozen=True)
class Step:
    """One contender on its copy of a case: `clear()` drops the gradients, `take()` takes a step."""

    clear: Callable[[], None]
    take: Callable[[], None]


def make_step(case: Case, contender: Callable[..., Backward], device: str) -> Step:
    """A contender with its own model and optimiser.

    Raises:
        RefusalError: the contender does not take this model.
    """
    setup = case.build(device)
    backward = contender(setup)
    optimizer = torch.optim.SGD(setup.model.parameters(), lr=RATE)

    def take() -> None:
        optimizer.zero_grad()
        backward(setup.forward())
        optimizer.step()

    return Step(optimizer.zero_grad, take)


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
            "milliseconds": _rounded(spread([1e3 * t for t in times[name]])),
            "ratio": _rounded(ratio(times[name], times[BASE])),
            "rounds": len(times[name]),
            "peak_bytes": peak_bytes(step.take, device),
        }
    return results


def _try_all(case: Case, device: str, contenders: Sequence[str]) -> tuple[dict[str, Step], dict[str, Any]]:
    """A first step of each contender; those that refuse the model are reported instead of run."""
    steps: dict[str, Step] = {}
    results: dict[str, Any] = {}
    for name in contenders:
        try:
            step = make_step(case, CONTENDERS[name], device)
            step.take()
        except RefusalError as error:
            results[name] = {"refused": str(error)}
        else:
            steps[name] = step
    return steps, results


def _rounded(value: Any) -> dict[str, float]:
    return {name: float(f"{number:.4g}") for name, number in dataclasses.asdict(value).items()}


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
    return " | ".join(cells)


def _megabytes(result: Mapping[str, Any]) -> str:
    return f"{result['peak_bytes'] / 1e6:7.1f} MB"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the benchmark."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m gramjd.profiling.bench_step", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", default="all", help=f"all, families or cases, by commas: {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds per case (default: 25)")
    parser.add_argument("--seconds", type=float, default=40.0, help="time per case, at least 5 rounds (default: 40)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="some of (default: all): %(default)s")
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="of gramjd's kernels (%(default)s)")
    parser.add_argument("--keep-freed", action="store_true", help="restart with glibc told to keep freed blocks")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here")
    args = parser.parse_args(argv)
    try:
        names = select(args.cases)
    except ValueError as error:
        parser.error(str(error))
    contenders = args.contenders.split(",")
    unknown = [name for name in contenders if name not in CONTENDERS]
    if unknown or BASE not in contenders:
        parser.error(
            f"got contenders {args.contenders!r}: {BASE!r} must be among them, and all of {', '.join(CONTENDERS)}"
        )
    if args.keep_freed:
        restart_keeping_freed("gramjd.profiling.bench_step", argv)
    options = {"device": args.device, "rounds": args.rounds, "seconds": args.seconds, "path": args.json}
    run(names, **options, contenders=contenders, backend=args.backend)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
