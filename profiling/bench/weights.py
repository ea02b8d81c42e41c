"""Time weightings beside TorchJD's and one `eigh` of the same Gramian, all taking turns in one process.

Times are those of the CPU, of one thread: on an idle machine the same as by the clock.

    python -m gramjd.profiling.bench weights --json profiling/results/weights.json

Gramians are those of small networks, at their start and trained, and drawn ones (see `gramians`). `error` is that of
the update, `|J^T (w - w*)| / |J^T w*|`, from weights `w*` that have passed the optimality test; TorchJD adds a ridge
or stops early. Where TorchJD takes minutes (UPGrad from m = 512 on) it is left out, unless `--with-slow` is given.
Gramians close to singular (see `singular`) take turns with a drawn one of the same size.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gramjd.aggregation import UPGrad
from gramjd.profiling.bench import singular
from gramjd.profiling.bench.gramians import FAMILIES, drawn, network_gramians
from gramjd.profiling.bench.singular import SINGULAR
from gramjd.profiling.bench.weightings import WEIGHTINGS, Compared, exact_weights
from gramjd.profiling.environment import describe, products_used
from gramjd.profiling.memory import peak_bytes
from gramjd.profiling.methods import RefusalError
from gramjd.profiling.timing import interleave, spread
from gramjd.text_table import digits

PACKAGES = ("torch", "gramjd", "torchjd", "quadprog", "cvxpy")
SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
OTHERS_SIZES = (32, 128, 256)
LARGE_SIZES = (1024, 2048, 4096)
LARGE = ("MLP, trained", "random", "low rank")
LARGEST = 2048  # of all but random ones, without --with-slow
SINGULAR_SIZES = (66, 200, 512)
SLOW = 256  # the largest m of TorchJD's UPGrad without --with-slow
_ROUNDS, _REPEATED = 21, 0.1


def measure(weighting: Compared, G: Tensor, *, seconds: float, theirs: bool = True) -> dict[str, dict[str, Any]]:
    """Median milliseconds and error of ours, TorchJD's (or why it refused) and `eigh`, as plain data.

    Args:
        weighting: an entry of `WEIGHTINGS`.
        G: [m, m], in the dtype that training would hand over.
        seconds: no further round is begun after this long.
        theirs: whether TorchJD takes part.

    Raises:
        InexactError: our exact weights are not.
    """
    exact, residual = exact_weights(weighting, G)
    calls: dict[str, Callable[[Tensor], Tensor]] = dict(weighting.ours)
    results: dict[str, dict[str, Any]] = {}
    if theirs:
        try:
            calls["torchjd"] = weighting.theirs(G)
        except RefusalError as error:
            results["torchjd"] = {"refused": str(error)}
    answers: dict[str, Tensor] = {}
    failures: dict[str, str] = {}
    steps = {name: _kept(answers, failures, name, call, G) for name, call in calls.items()}
    D = G.double()
    steps["eigh"] = lambda: torch.linalg.eigh(D)
    times = interleave(
        steps, rounds=_ROUNDS, warmup=0, seconds=seconds, at_least=_REPEATED, fewest=1, clock=time.process_time
    )
    for name, found in times.items():
        results[name] = {"ms": digits(1e3 * spread(found).median), "rounds": len(found)}
        if name in answers:
            results[name]["error"] = update_error(G, answers[name], exact)
    results.update({name: {"refused": text} for name, text in failures.items()})
    results["exact"]["optimality"] = digits(residual)
    return results


def update_error(G: Tensor, w: Tensor, exact: Tensor) -> float | None:
    """`|J^T (w - w*)| / |J^T w*|`; None if `J^T w*` is zero up to the rounding of `G`.

    >>> update_error(torch.eye(2), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0], dtype=torch.float64))
    1.0
    """
    D, off = G.double(), w.double() - exact
    square = float(exact @ D @ exact)
    noise = len(G) * torch.finfo(G.dtype).eps * float(exact @ D.diagonal().sqrt()) ** 2
    return None if square <= noise else digits(math.sqrt(max(0.0, float(off @ D @ off)) / square))


def large(G: Tensor) -> dict[str, float]:
    """Milliseconds of the CPU for one exact UPGrad, and in a second call the most bytes of tensors alive beyond `G`."""
    weigh = UPGrad()
    start = time.process_time()
    weigh(G)
    elapsed = time.process_time() - start
    return {"ms": digits(1e3 * elapsed), "peak_bytes": peak_bytes(lambda: weigh(G))}


def compare(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure everything, smallest first; a row at a time."""
    networks = network_gramians(max(*args.sizes, *args.others_sizes, *args.large, 0))
    for name, sizes in {"UPGrad": args.sizes, **dict.fromkeys(list(WEIGHTINGS)[1:], args.others_sizes)}.items():
        # The rest are quick or refused: a part of the time will do.
        seconds = args.seconds if name == "UPGrad" else args.seconds / 4
        for m in sizes:
            for title, G in _gramians(networks, m):
                found = measure(WEIGHTINGS[name], G, seconds=seconds, theirs=m <= SLOW or args.with_slow)
                yield {"weighting": name, "gradients": title, "m": m, "contenders": found}
    for m in args.singular_sizes:
        for title in SINGULAR:
            yield singular.measure(title, m, args.seconds)
    for m in args.large:
        for title, G in _gramians(networks, m):
            if args.with_slow or (title in LARGE and (m <= LARGEST or title == "random")):
                yield {"weighting": "UPGrad", "gradients": title, "m": m, "contenders": {"exact": large(G)}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of losses for UPGrad")
    parser.add_argument("--others-sizes", type=int, nargs="+", default=OTHERS_SIZES, help="and for the rest")
    parser.add_argument("--singular-sizes", type=int, nargs="*", default=SINGULAR_SIZES, help="those close to singular")
    parser.add_argument("--large", type=int, nargs="*", default=LARGE_SIZES, help="m for time and memory of UPGrad")
    parser.add_argument("--seconds", type=float, default=1.2, help="time for a Gramian's rounds, of which one is done")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--with-slow", action="store_true", help=f"TorchJD above m = {SLOW} too; all large Gramians")


def run(args: argparse.Namespace) -> int:
    """Run the comparison, print a line per row, and write it as JSON if asked to."""
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        settings = {"seconds": args.seconds, "with_slow": args.with_slow}
        report: dict[str, Any] = {"environment": describe(PACKAGES), "products": products_used()}
        report |= {"settings": settings, "results": []}
        for row in compare(args):
            report["results"].append(row)
            print(_line(row), flush=True)
            report["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n")
    finally:
        torch.set_num_threads(before)
    return 0


def _kept(
    answers: dict[str, Tensor], failures: dict[str, str], name: str, call: Callable[[Tensor], Tensor], G: Tensor
) -> Callable[[], None]:
    def step() -> None:
        try:
            answers[name] = call(G)
        except Exception as error:
            if name != "torchjd":
                raise
            failures[name] = f"{type(error).__name__}: {error}"  # whatever goes wrong over there is a result

    return step


def _gramians(networks: Mapping[str, Tensor], m: int) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, G[:m, :m].contiguous()) for name, G in networks.items() if m <= len(G))
    yield from ((family, drawn(family, m)) for family in FAMILIES)


def _line(row: Mapping[str, Any]) -> str:
    cells = [f"{row['weighting']:8} {row['gradients']:23} m {row['m']:4}"]
    for name, found in row["contenders"].items():
        cells.append(f"{name} refused" if "refused" in found else f"{name} {found['ms']:9.3f} ms")
        if found.get("error") is not None:
            cells[-1] += f" error {found['error']:.0e}"
        if "peak_bytes" in found:
            cells[-1] += f", {found['peak_bytes'] / 2**20:.0f} MiB"
    return " | ".join(cells)
