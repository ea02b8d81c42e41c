"""Time UPGrad's weights against one quadprog solve per row, in one interleaved run.

`python -m gramjd.profiling.bench_weights --json out.json`. The quadprog route is that of the usual implementations:
normalise G by its trace, add a ridge of 1e-4 (without it quadprog refuses singular Gramians), solve row by row.
`error` is the largest distance of a projected gradient from its exact place, over the length of the gradient.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gramjd.aggregation.solvers import dual_cone

SIZES = (8, 32, 64, 128, 256)
_RIDGE = 1e-4


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random(m: int) -> Tensor:
    """Independent gradients in many dimensions: half of the pairs conflict, all of them a little."""
    return _randn(m, m, 4 * m)


def conflicting(m: int) -> Tensor:
    """Gradients that nearly cancel in the sum: hardly any direction improves all losses."""
    J = _randn(m, m, 4 * m)
    return J - 0.9 * J.mean(0)


def correlated(m: int) -> Tensor:
    """Six common factors of either sign carry most of each gradient, whose lengths span orders of magnitude."""
    J = 0.3 * _randn(m, m, 4 * m) + _randn(m + 1, m, 6) @ _randn(m + 2, 6, 4 * m) / 6**0.5
    return J * torch.exp(2 * _randn(m + 3, m, 1))


def low_rank(m: int) -> Tensor:
    """Fewer dimensions than losses, and a direction that serves all of them."""
    J = _randn(m, m, m // 4 + 2)
    J[:, 0] = 0.3 * J[:, 0].abs() + 0.1
    return J


FAMILIES: dict[str, Callable[[int], Tensor]] = {
    "random": random,
    "conflicting": conflicting,
    "correlated": correlated,
    "low rank": low_rank,
}


def by_quadprog(G: Tensor) -> Tensor:
    """All rows of `argmin {v^T (G / tr G + 1e-4 I) v : v >= e_i}`, one solve each."""
    import quadprog

    m = len(G)
    A = (G / G.trace()).numpy() + _RIDGE * np.eye(m)
    zero, bounds = np.zeros(m), np.eye(m)
    return torch.from_numpy(np.stack([quadprog.solve_qp(A, zero, bounds, bounds[i])[0] for i in range(m)]))


def measure(J: Tensor, repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds and error of each method on the Gramian of `J`, taking turns."""
    G, eye = J @ J.mT, torch.eye(len(J), dtype=torch.float64)
    methods: dict[str, Callable[[], Tensor]] = {
        "exact": lambda: dual_cone(G, eye),
        "tol=1e-4": lambda: dual_cone(G, eye, 1e-4),
        "quadprog": lambda: by_quadprog(G),
    }
    exact = methods["exact"]()
    times: dict[str, list[float]] = {name: [] for name in methods}
    errors = {}
    for _ in range(repeats):
        for name, method in methods.items():
            start = time.perf_counter()
            W = method()
            times[name].append(1e3 * (time.perf_counter() - start))
            lengths = torch.linalg.vector_norm(J, dim=1)
            errors[name] = float((torch.linalg.vector_norm((W - exact) @ J, dim=1) / lengths).max())
    return {name: {"ms": statistics.median(times[name]), "error": errors[name]} for name in methods}


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "torch": torch.__version__,
        "cpu": models[0] if models else platform.processor(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison, print a table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of losses")
    parser.add_argument("--repeats", type=int, help="turns for each method; by default fewer for larger sizes")
    options = parser.parse_args(arguments)
    rows = []
    print(f"{'family':12} {'m':>4} {'exact ms':>9} {'tol ms':>9} {'quadprog ms':>12} {'speed-up':>9} {'tol error':>10}")
    for m in options.sizes:
        for family, make in FAMILIES.items():
            found = measure(make(m), options.repeats or (21 if m <= 64 else 5 if m <= 128 else 3))
            ratio = found["quadprog"]["ms"] / found["exact"]["ms"]
            rows.append({"family": family, "m": m, "methods": found, "speed_up": ratio})
            print(
                f"{family:12} {m:4} {found['exact']['ms']:9.2f} {found['tol=1e-4']['ms']:9.2f}"
                f" {found['quadprog']['ms']:12.1f} {ratio:9.1f} {found['tol=1e-4']['error']:10.1e}"
            )
            sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "ridge": _RIDGE, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
