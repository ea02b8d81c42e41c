"""`gramjd paper cost`: the paper's Table 7 and what section 6 promised, in seconds per epoch and peak memory.

Plain SGD, the materialised Jacobian and gramjd take steps in turns in one process, on random images of each set's shape
and the set's network; an epoch is 1024 images. The first table is at batch 32, the second one over batch sizes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gramjd import arguments
from gramjd.errors import InputError
from gramjd.experiments import aggregators, cost_plots, options
from gramjd.experiments.cost_methods import WAYS, Fill, Task, make_step, sgd
from gramjd.experiments.data.sets import DATA
from gramjd.experiments.demo_report import align
from gramjd.experiments.results import write
from gramjd.extras import require
from gramjd.profiling.environment import describe
from gramjd.profiling.memory import peak_bytes
from gramjd.profiling.timing import interleave, ratio, spread

EPOCH = 1024
SHAPES = {
    "svhn": (3, 32, 32),
    "cifar10": (3, 32, 32),
    "eurosat": (3, 64, 64),
    "mnist": (1, 28, 28),
    "digits": (1, 8, 8),
}
SWEPT = ("Mean", "UPGrad")
BASE = "SGD"


add_arguments = arguments.paper_cost


def run(args: argparse.Namespace) -> int:
    """Measure, save `cost.json` and `cost.png`, print both tables (or the JSON)."""
    require("matplotlib", "demo")
    if args.quick:
        args.sets, args.swept, args.sizes = "digits", "digits", (32, 64)
    keys = args.sets.split(",")
    if not set(keys) <= set(SHAPES):
        raise InputError(f"got sets {args.sets}; expected names among: {', '.join(SHAPES)}")
    names = aggregators.select(args.weightings)
    with options.threads(args.threads or torch.get_num_threads()):
        results = {"environment": describe(packages=("torch", "gramjd"), device=args.device)} | _measure(
            args, keys, names
        )
    text = write(results, args.out / "cost.json")
    plot = args.out / "cost.png"
    cost_plots.draw(results["sizes"], DATA[args.swept].title).savefig(plot, dpi=100)
    print(text if args.json else f"{table(results)}\n\nPlot: {plot}")
    return 0


def _measure(args: argparse.Namespace, keys: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    at_32 = {key: _contenders(names, ("jacobian", "gramjd")) for key in keys}
    sizes = {m: _contenders(SWEPT, ("per sample", "gramjd")) for m in args.sizes}
    for m in (m for m in args.sizes if m <= args.jacobian_up_to):
        sizes[m] |= _contenders(SWEPT, ("jacobian",))
    bar = require("tqdm", "demo").tqdm(total=len(at_32) + len(sizes), unit="comparison", disable=None, file=sys.stderr)
    with bar:
        sets, over_m = {}, {}
        for key, contenders in at_32.items():
            sets[key] = compare(task(key, 32, args.device), contenders, rounds=args.rounds, device=args.device)
            bar.update()
        for m, contenders in sizes.items():
            over_m[str(m)] = compare(
                task(args.swept, m, args.device), contenders, rounds=args.rounds, device=args.device
            )
            bar.update()
    return {"epoch": EPOCH, "swept": args.swept, "sets": sets, "sizes": over_m}


def _contenders(names: Sequence[str], ways: Sequence[str]) -> dict[str, Fill]:
    return {BASE: sgd} | {f"{way}: {name}": WAYS[way](name) for way in ways for name in names}


def task(key: str, m: int, device: str) -> Task:
    """A batch of m random images of a set's shape with random labels, and the set's network."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(m, *SHAPES[key], generator=generator).to(device)
    return Task(DATA[key].network, images, torch.randint(10, (m,), generator=generator).to(device))


def compare(on: Task, contenders: Mapping[str, Fill], *, rounds: int, device: str) -> dict[str, dict[str, Any]]:
    """Seconds per epoch, time over SGD's and peak memory of every contender.

    Args:
        on: network and batch.
        contenders: how each fills `.grad`.
        rounds: timed rounds.
        device: where.
    """
    steps = {name: make_step(fill, on) for name, fill in contenders.items()}
    timed = {name: step.take for name, step in steps.items()}
    times = interleave(timed, rounds=rounds, warmup=1, at_least=0.02, device=device)
    per_epoch = EPOCH / len(on.labels)
    found = {}
    for name, step in steps.items():
        step.clear()
        found[name] = {
            "seconds_per_epoch": vars(spread([per_epoch * t for t in times[name]])),
            "over_sgd": vars(ratio(times[name], times[BASE])),
            "rounds": len(times[name]),
            "peak_bytes": peak_bytes(step.take, device),
        }
    return found


def table(results: Mapping[str, Any]) -> str:
    """Both tables as text."""
    blocks = [f"{DATA[key].title}, batch 32\n{align(rows(found))}" for key, found in results["sets"].items()] + [
        f"{DATA[results['swept']].title}, batch {m}\n{align(rows(found))}" for m, found in results["sizes"].items()
    ]
    return "\n\n".join(blocks)


def rows(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A line per way and aggregator, under a head."""
    lines = [["way", "aggregator", "s/epoch", "over SGD", "peak MB", "over SGD"]]
    base = found[BASE]["peak_bytes"]
    for name, cost in found.items():
        way, _, aggregator = name.partition(": ")
        seconds, over = cost["seconds_per_epoch"]["median"], cost["over_sgd"]["median"]
        memory = [f"{cost['peak_bytes'] / 1e6:.1f}", f"{cost['peak_bytes'] / base:.2f}"]
        lines.append([way, aggregator or "-", f"{seconds:.3f}", f"{over:.2f}", *memory])
    return lines
