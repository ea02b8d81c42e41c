"""Profile a training step: `profile_step` runs every method on the user's own model and puts the numbers together."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gramjd import errors
from gramjd.errors import InputError
from gramjd.profiling.environment import describe
from gramjd.profiling.marks import PHASES
from gramjd.profiling.measure import measure
from gramjd.profiling.methods import METHODS, aggregator_named
from gramjd.profiling.target import Make, spec_of
from gramjd.profiling.timing import is_wide
from gramjd.text_table import aligned

Result = dict[str, Any]
SIGNALS = {9: "killed, most likely for its memory", 6: "aborted, most likely for want of memory", 11: "crashed"}


NOISE = "noise: the quartiles of its time over plain lie far apart; let nothing else run, or give it more --rounds"


@dataclass(frozen=True)
class Profile:
    """What `profile_step` measured: `print` it, `to_dict()` or `save` it, draw it with `gramjd.profiling.figures`.

    Args:
        environment: machine, versions, date.
        settings: what was asked for.
        runs: one an m: `{"m": m, "methods": {name: numbers, or {"refused": why}}}`.
    """

    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON can hold it."""
        return {"environment": self.environment, "settings": self.settings, "runs": list(self.runs)}

    def save(self, path: Path | str) -> None:
        """Write `to_dict()` as JSON; `Profile(**json)` makes it whole again."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")  # there is a whole file at any time
        part.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        part.replace(path)

    def __str__(self) -> str:
        """A table for each m: time by phase, its ratio to plain training, memory, operations."""
        return "\n\n".join(_table(run) for run in self.runs)


def profile_step(
    make: Make | str,
    *,
    m: int | None = None,
    sweep: Sequence[int] = (),
    methods: Sequence[str] = tuple(METHODS),
    aggregator: str = "UPGrad",
    rounds: int = 15,
    seconds: float = 10.0,
    memory_limit: int | None = None,
    patience: float = 300.0,
    isolate: bool = True,
    notify: Callable[[str], None] | None = None,
    path: Path | str | None = None,
) -> Profile:
    """Time by phase, peak memory and operations of a step, for plain training, gramjd, the Jacobian and TorchJD.

    Args:
        make: a function that returns `(model, losses)`: a module and a function without arguments that gives the
            losses with a fresh graph; or where it is, `"module:function"` or `"file.py:function"`.
        m: number of losses, handed to `make` as its argument `m`; default: `make` decides.
        sweep: several numbers of losses, instead of `m`.
        methods: keys of `gramjd.profiling.methods.METHODS`; `"plain"` is always among them.
        aggregator: class name, as in `gramjd.aggregation`.
        rounds: timed rounds a method, in each of which it is compared with a plain step.
        seconds: time for a method's rounds.
        memory_limit: bytes that a step may take; a method that needs more is reported as out of memory.
        patience: seconds after which a method's process is ended and the method reported as too slow.
        isolate: run each method in a process of its own, which `make` must then be importable from. Without, the
            resident size tells nothing after the first method.
        notify: called with a line after each method.
        path: file that is written anew after each method, so that a run which is ended leaves what it had measured.

    Returns:
        A Profile. Methods that run out of memory, refuse the model or are not installed are in it, with the reason.

    Raises:
        InputError: an argument is none of those allowed, or `make` returns something else.
        LossError: what it returns gives no vector of losses.
    """
    sizes = tuple(sweep) or (m,)
    chosen = _chosen(methods)
    aggregator_named(aggregator)
    settings = {"m": m, "aggregator": aggregator, "rounds": rounds, "seconds": seconds, "memory_limit": memory_limit}
    runs: list[dict[str, Any]] = []
    found = Profile(describe(), settings, runs)
    run_one = partial(_in_process, spec_of(make), patience) if isolate else partial(measure, make)
    for size in sizes:
        results: dict[str, Result] = {}
        runs.append({"m": size, "methods": results})
        for name in chosen:
            options = {"aggregator": aggregator, "rounds": rounds, "seconds": seconds, "limit": memory_limit}
            results[name] = run_one(name, m=size, **options)
            runs[-1]["m"] = next((r["m"] for r in results.values() if "m" in r), size)
            if path is not None:
                found.save(path)
            if notify is not None:
                notify(f"m = {results[name].get('m', size)}: {name} {_state(results[name])}")
    return found


def _chosen(methods: Sequence[str]) -> list[str]:
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise InputError(f"got method {unknown[0]!r}; expected some of {', '.join(METHODS)}")
    return ["plain", *(name for name in methods if name != "plain")]


def _in_process(make: str, patience: float, method: str, **options: Any) -> Result:
    """`measure` in a fresh process; a process that dies is a row that says so."""
    request = {"make": make, "method": method, "path": sys.path, "threads": torch.get_num_threads(), **options}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-m", "gramjd.profiling.measure", str(path)]
        try:
            done = subprocess.run(
                command, input=json.dumps(request), capture_output=True, text=True, check=False, timeout=patience
            )
        except subprocess.TimeoutExpired:
            return {"refused": f"not done after {patience:g} s"}
        if path.is_file():
            result: Result = json.loads(path.read_text())
            if "error" in result:
                raise getattr(errors, result["kind"], InputError)(result["error"])
            return result
    if done.returncode < 0:
        return {"refused": SIGNALS.get(-done.returncode, f"ended by signal {-done.returncode}")}
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise InputError(f"the step failed before any method could be compared: {last}")


def _state(result: Result) -> str:
    return f"refused: {result['refused']}" if "refused" in result else f"{result['milliseconds']['median']:.1f} ms"


def _table(run: Mapping[str, Any]) -> str:
    head = ["method", *(f"{phase}, ms" for phase in PHASES), "step, ms", "over plain", "peak, MB", "over plain"]
    head += ["resident, MB", "GFLOP"]
    results: Mapping[str, Result] = run["methods"]
    plain = results["plain"]
    rows, notes = [], []
    for name, result in results.items():
        if "refused" in result:
            rows.append([name, *["-"] * (len(head) - 1)])
            notes.append(f"{name}: {result['refused']}")
        else:
            rows.append([name, *_cells(result, plain)])
            notes += [f"{name}: {text}" for text in result["warnings"]]
            notes += [f"{name}: {NOISE}"] if is_wide(result["ratio"]) else []
    return "\n".join([f"m = {run['m']}", aligned([head, *rows], "lr"), *dict.fromkeys(notes)])


def _cells(result: Result, plain: Result) -> list[str]:
    ratio = result["ratio"]
    base = plain.get("peak_bytes")
    resident = result["resident_bytes"]
    return [
        *(f"{result['phases'][phase]:.2f}" if phase in result["phases"] else "" for phase in PHASES),
        f"{result['milliseconds']['median']:.2f}",
        f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        f"{result['peak_bytes'] / 1e6:.2f}",
        f"{result['peak_bytes'] / base:.2f}" if base else "-",
        "-" if resident is None else f"{resident / 1e6:.1f}",
        f"{result['flops'] / 1e9:.3g}",
    ]
