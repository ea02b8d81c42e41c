"""`gramjd demo iwrm`: the paper's instance-wise setting, one objective per training image.

Every network is trained with plain SGD and with Jacobian descent from the same weights, on the same batches,
at the same learning rates. Each method's best rate is the one with the least area under its loss curve.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from gramjd import aggregation
from gramjd.aggregation import Weighting
from gramjd.demos.cost import StepCost, step_costs
from gramjd.demos.digits import load_digits
from gramjd.demos.extras import require
from gramjd.demos.images import TRAIN_SIZE, Images
from gramjd.demos.networks import NETWORKS, build
from gramjd.demos.plots import save_figure
from gramjd.demos.report import format_report
from gramjd.demos.training import BATCH, Method, Run, train

RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
AGGREGATORS: dict[str, type[Weighting]] = {
    weighting.__name__.lower(): weighting for weighting in (aggregation.UPGrad, aggregation.Mean, aggregation.Sum)
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--epochs", type=_positive, default=10, help="passes over the 1024 images (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the subset, weights and batches (default: 0)")
    parser.add_argument("--aggregator", choices=AGGREGATORS, default="upgrad", help="beside SGD (default: upgrad)")
    parser.add_argument("--rates", type=_rates, default=RATES, metavar="R,R", help="learning rates, each with both")
    parser.add_argument("--rounds", type=_positive, default=30, help="timed steps of each method (default: 30)")
    # These networks are too small to share out: more threads only wait for each other.
    parser.add_argument("--threads", type=_positive, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/iwrm"), help="folder for the plot and results.json")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Train, print the table (or JSON), save the plot; 1 if a method diverged at all of its rates."""
    require("matplotlib", "demo")  # before the training, not after it
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        return _run(args)
    finally:
        torch.set_num_threads(threads)


def _run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    data = load_digits(args.seed)
    aggregator = AGGREGATORS[args.aggregator]
    methods = [Method("SGD"), Method(aggregator.__name__, aggregator())]
    runs = _train_all(methods, args, data)
    costs = [cost for name in NETWORKS for cost in step_costs(name, methods, data, seed=args.seed, rounds=args.rounds)]
    args.out.mkdir(parents=True, exist_ok=True)
    plot = save_figure(runs, best_runs(runs), args.out / "iwrm.png")
    results = {
        "settings": _settings(args, aggregator.__name__),
        "seconds": round(time.perf_counter() - start, 1),
        "best": [_plain(run) for run in best_runs(runs)],
        "runs": [_plain(run) for run in runs],
        "costs": [dataclasses.asdict(cost) for cost in costs],
        "plot": str(plot),
    }
    text = json.dumps(results, indent=2, allow_nan=False)
    (args.out / "results.json").write_text(text + "\n")
    print(text if args.json else _summary(runs, costs, results))
    return 0 if all(math.isfinite(best.area) for best in best_runs(runs)) else 1


def best_runs(runs: Sequence[Run]) -> list[Run]:
    """For every network and method the run with the least area under its loss curve, in order of appearance."""
    best: dict[tuple[str, str], Run] = {}
    for candidate in runs:
        key = (candidate.network, candidate.method)
        if key not in best or candidate.area < best[key].area:
            best[key] = candidate
    return list(best.values())


def _train_all(methods: Sequence[Method], args: argparse.Namespace, data: Images) -> list[Run]:
    steps_per_run = args.epochs * math.ceil(TRAIN_SIZE / BATCH)
    total = len(NETWORKS) * len(args.rates) * len(methods) * steps_per_run
    runs = []
    # disable=None: no bar where stderr is a file and not a terminal.
    with require("tqdm", "demo").tqdm(total=total, unit="step", disable=None, file=sys.stderr) as bar:
        for (network, make), rate, method in product(NETWORKS.items(), args.rates, methods):
            bar.set_description(f"{network} {method.name} {rate:g}")
            model = build(make, args.seed)
            run = train(network, model, method, rate, data, epochs=args.epochs, seed=args.seed, tick=bar.update)
            runs.append(run)
    return runs


def _summary(runs: Sequence[Run], costs: Sequence[StepCost], results: dict[str, Any]) -> str:
    table = format_report(best_runs(runs), runs, costs)
    return f"{table}\n\n{results['seconds']:.0f} s in all. Curves: {results['plot']}"


def _settings(args: argparse.Namespace, aggregator: str) -> dict[str, Any]:
    return {
        "aggregator": aggregator,
        "batch": BATCH,
        "epochs": args.epochs,
        "rates": list(args.rates),
        "seed": args.seed,
        "threads": args.threads,
        "train_images": TRAIN_SIZE,
    }


def _plain(run: Run) -> dict[str, Any]:
    """A run as JSON: what is not finite becomes null."""
    fields = dataclasses.asdict(run) | {"area": run.area}
    return {name: _finite(value) for name, value in fields.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected 1 or more")
    return value


def _rates(text: str) -> tuple[float, ...]:
    rates = tuple(float(part) for part in text.split(","))
    if not all(0 < rate < math.inf for rate in rates):
        raise argparse.ArgumentTypeError(f"got {text}, expected positive numbers separated by commas")
    return rates
