"""Time every route of the Gramian of outer products on a grid of shapes, and compare with what the cost model chooses.

`python -m gramjd.profiling.bench routes --json profiling/results/routes_cpu.json`. Routes take turns; a cell is the
lower quartile of the process's own time on one thread, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gramjd.kernels import calibrate, cost, outer
from gramjd.profiling.environment import describe, products_used

# Sizes (i, o) of layers; (b, T) of batches of sequences; (K, T) of tasks on one batch.
LAYERS = ((16, 16), (64, 64), (256, 256), (768, 768), (256, 1024), (1024, 256))
SEQUENCES = ((4, 4), (4, 32), (4, 128), (16, 2), (16, 16), (16, 64), (64, 4), (64, 16), (64, 64))
TASKS = ((2, 16), (2, 256), (10, 16), (10, 256), (32, 64))
LARGEST = 2e10  # operations of a route that is still timed; slower ones are not worth the wait


def shapes() -> Iterator[outer.Extent]:
    """The grid."""
    for i, o in LAYERS:
        yield from (outer.Extent(1, 1, b, T, i, o) for b, T in SEQUENCES)
        yield from (outer.Extent(1, K, 1, T, i, o) for K, T in TASKS)


def measure(e: outer.Extent, rounds: int) -> dict[str, float]:
    """Milliseconds of each route that applies."""
    x, c = torch.randn(e.g, e.b, e.T, e.i), torch.randn(e.K, e.g, e.b, e.T, e.o)
    times: dict[str, list[float]] = {name: [] for name in outer.options(e) if 2 * outer.operations(name, e) < LARGEST}
    for done in range(-1, rounds):
        for name, found in times.items():
            calls = max(1, int(1e-3 / outer.estimate(name, e, cost.constants_of("cpu", torch.float32)).seconds))
            start = time.thread_time()
            for _ in range(calls):
                outer.ROUTES[name](x, c, torch.float32)
            if done >= 0:
                found.append(1e3 * (time.thread_time() - start) / calls)
    return {name: sorted(found)[len(found) // 4] for name, found in times.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the args."""
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds per shape (default: 9)")


def run(args: argparse.Namespace) -> int:
    """Measure, print, write."""
    torch.set_num_threads(1)
    known = cost.in_force(calibrate.measure("cpu", torch.float32))
    grid: list[dict[str, Any]] = []
    for e in shapes():
        times = measure(e, args.rounds)
        chosen = outer.route(e, known)
        grid.append({"extent": e._asdict(), "ms": {name: round(ms, 4) for name, ms in times.items()}, "chosen": chosen})
        over = times[chosen] / min(times.values())
        cells = "  ".join(f"{name} {ms:.3f}" for name, ms in times.items())
        print(f"K {e.K:3} b {e.b:3} T {e.T:4} i {e.i:5} o {e.o:5}  {cells}  chosen {chosen}: {over:.2f}", flush=True)
    worst = max(row["ms"][row["chosen"]] / min(row["ms"].values()) for row in grid)
    print(f"worst choice over best: {worst:.2f}")
    if args.json:
        data = {"environment": describe(), "products": products_used(), "constants": known._asdict()}
        data |= {"worst": round(worst, 3), "grid": grid}
        args.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0
