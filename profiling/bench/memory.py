"""Peak memory of a step against the number of losses: the claim "memory similar to SGD", with numbers.

    python -m gramjd.profiling.bench memory --json profiling/results/memory_cpu.json

Every allocation of one step is counted: forward pass, walk, UPGrad's weights, update, gradients. What was held before
(parameters, batch) is not. Counts do not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gramjd.errors import InputError
from gramjd.profiling.bench.cases import CASES, Case, gpt
from gramjd.profiling.command import sweep
from gramjd.profiling.environment import describe, products_used
from gramjd.profiling.marks import ignore
from gramjd.profiling.memory import peak_bytes
from gramjd.profiling.methods import METHODS
from gramjd.profiling.predict import predict_peak
from gramjd.profiling.target import Work

SIZES = (8, 16, 32, 64, 128, 256)
COMPARED = ("plain", "gramjd", "gramjd reuse")
MODELS: dict[str, tuple[str, Callable[[int], Work]]] = {
    "mlp": (CASES["mlp-32"].title, CASES["mlp-32"].make),
    "cifar": (CASES["cifar-32"].title, CASES["cifar-32"].make),
    "vgg": (CASES["vgg-32"].title, CASES["vgg-32"].make),
    "encoder": (CASES["encoder-16"].title, CASES["encoder-16"].make),
    "gpt": ("GPT-2 style, 6 layers, d 384, T 32, tied head", partial(gpt, vocabulary=1000, length=32)),
    "tasks": (CASES["tasks-10"].title, CASES["tasks-10"].make),
}


def measure(make: Callable[[int], Work], m: int, device: str = "cpu") -> dict[str, Any]:
    """Peak bytes of a step by each method, and what `predict_peak` told beforehand."""
    work = Case("", m, make).build(device)
    point: dict[str, Any] = {"m": m, "predicted": predict_peak(work).peak}
    for name in COMPARED:
        step = METHODS[name](work, "UPGrad")
        work.clear()
        point[name] = peak_bytes(partial(step, ignore), device)
    return point


def sweep_models(names: Sequence[str], sizes: Sequence[int], device: str, path: Path | None) -> dict[str, Any]:
    """Measure the named models; print a line each and write `path` after each."""
    report: dict[str, Any] = {"environment": describe(device=device), "products": products_used()}
    report |= {"aggregator": "UPGrad", "models": {}}
    for name in names:
        title, make = MODELS[name]
        points: list[dict[str, Any]] = []
        report["models"][name] = {"title": title, "points": points}
        for m in sizes:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that rows go dense is no news here
                points.append(measure(make, m, device))
            over = {kind: points[-1][kind] / points[-1]["plain"] for kind in (*COMPARED[1:], "predicted")}
            cells = " ".join(f"{kind} {ratio:.2f}x" for kind, ratio in over.items())
            print(f"{name:8} m = {m:3} plain {points[-1]['plain'] / 1e6:8.2f} MB  {cells}", flush=True)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(report, indent=1) + "\n")
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--models", default=",".join(MODELS), help="by commas (default: all six)")
    parser.add_argument("--sizes", type=sweep, default=list(SIZES), metavar="m=8,16,..", help="numbers of losses")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here")


def run(args: argparse.Namespace) -> int:
    """Measure the models asked for."""
    names = args.models.split(",")
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise InputError(f"got model {unknown[0]!r}, expected some of {', '.join(MODELS)}")
    sweep_models(names, args.sizes, args.device, args.json)
    return 0
