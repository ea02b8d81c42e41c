"""How the time of a Gramian grows: with the number of losses, the width of a layer and the length of a sequence.

    python -m gramjd.profiling.bench growth --json profiling/results/growth_cpu.json

Each sweep changes one size of a stack of two linear layers and times `gramian` alone. Beside it stand the operations
that `explain` plans: on log axes the two should run parallel once a size is large enough to matter, without a cliff
where another route is taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gramjd
from gramjd.profiling.environment import describe, products_used
from gramjd.text_table import digits

ROUNDS, SECONDS = 15, 1.5


def stack(m: int, width: int, length: int) -> Callable[[], Tensor]:
    """Losses [m] of two linear layers of a width, applied at `length` positions of each sample."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
    x = torch.randn(m, length, width) if length > 1 else torch.randn(m, width)
    return lambda: model(x).square().flatten(1).mean(1)


SWEEPS: dict[str, tuple[str, Sequence[int], Callable[[int], Callable[[], Tensor]]]] = {
    "m": ("losses m (width 512)", (8, 16, 32, 64, 128, 256, 512), partial(stack, width=512, length=1)),
    "width": ("width (m = 64)", (64, 128, 256, 512, 1024, 2048, 4096), lambda n: stack(64, n, 1)),
    "T": ("positions T (m = 16, width 256)", (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), lambda n: stack(16, 256, n)),
}


def measure(losses: Callable[[], Tensor]) -> dict[str, Any]:
    """Median seconds of `gramian`, of a backward pass on the same graph, and the operations that are planned."""
    told = gramjd.explain(losses())
    times: dict[str, list[float]] = {"gramian": [], "backward": []}
    end = time.perf_counter() + SECONDS
    for n in range(ROUNDS + 3):
        for name, work in (("gramian", gramjd.gramian), ("backward", lambda found: found.mean().backward())):
            graph = losses()
            start = time.perf_counter()
            work(graph)
            times[name].append(time.perf_counter() - start)
        if n >= 5 and time.perf_counter() > end:
            break
    routes = sorted({use.route for use in told.uses if len(use.shape) > 1})
    medians = {name: digits(statistics.median(spent[3:]), 3) for name, spent in times.items()}
    return {**medians, "operations": told.operations, "routes": routes}


def sweep(path: Path | None) -> dict[str, Any]:
    """All sweeps; print a line each and write `path`."""
    results: dict[str, Any] = {**describe(), "products": products_used(), "sweeps": {}}
    for name, (title, sizes, make) in SWEEPS.items():
        points = []
        for size in sizes:
            points.append({"size": size, **measure(make(size))})
            found = points[-1]
            print(
                f"{title} {size:5}: {1e3 * found['gramian']:9.2f} ms, {found['operations']:.3g} operations", flush=True
            )
        results["sweeps"][name] = {"title": title, "points": points}
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n")
    return results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here")


def run(args: argparse.Namespace) -> int:
    """Measure everything."""
    sweep(args.json)
    return 0
