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
from typing import Any

import torch

from gramjd import aggregation, arguments
from gramjd.errors import InputError
from gramjd.experiments.aggregators import BY_CLASS
from gramjd.experiments.data.images import TRAIN_SIZE, Images
from gramjd.experiments.data.sets import load_digits
from gramjd.experiments.demo_cost import StepCost, step_costs
from gramjd.experiments.demo_plots import save_figure
from gramjd.experiments.demo_report import conclusion, format_report
from gramjd.experiments.networks import DEMO, build
from gramjd.experiments.training import Method, Run, train
from gramjd.extras import require

add_arguments = arguments.demo_iwrm


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
    methods = make_methods(args)
    data = load_digits(args.seed)
    if args.batch > TRAIN_SIZE:
        raise InputError(f"got --batch {args.batch}, and there are {TRAIN_SIZE} training images")
    runs = _train_all(args, data)
    measured = {"batch": args.batch, "seed": args.seed, "rounds": args.rounds}
    costs = [cost for name in DEMO for cost in step_costs(name, methods, data, **measured)]
    args.out.mkdir(parents=True, exist_ok=True)
    best = best_runs(runs)
    plot = save_figure(runs, best, args.out / "iwrm.png", args.batch)
    results = {
        "settings": _settings(args, methods[1].name),
        "seconds": round(time.perf_counter() - start, 1),
        "conclusion": conclusion(best, costs, args.batch),
        "best": [_plain(run) for run in best],
        "runs": [_plain(run) for run in runs],
        "costs": [dataclasses.asdict(cost) for cost in costs],
        "plot": str(plot),
    }
    text = json.dumps(results, indent=2, allow_nan=False)
    (args.out / "results.json").write_text(text + "\n")
    print(text if args.json else _summary(runs, costs, results))
    return 0 if all(math.isfinite(run.area) for run in best) else 1


def make_methods(args: argparse.Namespace) -> list[Method]:
    """SGD, and the aggregator of the options beside it, made anew so that one that draws starts from its seed.

    Raises:
        InputError: a ridge for another aggregator than UPGrad.
    """
    if args.ridge is None:
        return [Method("SGD"), Method(args.aggregator, BY_CLASS[args.aggregator].make(args.seed))]
    if args.aggregator != "UPGrad":
        raise InputError(f"got --ridge for {args.aggregator}; it is an option of UPGrad")
    return [Method("SGD"), Method(f"UPGrad, ridge {args.ridge:g}", aggregation.UPGrad(ridge=args.ridge))]


def best_runs(runs: Sequence[Run]) -> list[Run]:
    """For every network and method the run with the least area under its loss curve, in order of appearance."""
    best: dict[tuple[str, str], Run] = {}
    for candidate in runs:
        key = (candidate.network, candidate.method)
        if key not in best or candidate.area < best[key].area:
            best[key] = candidate
    return list(best.values())


def _train_all(args: argparse.Namespace, data: Images) -> list[Run]:
    total = len(DEMO) * len(args.rates) * 2 * args.epochs * math.ceil(TRAIN_SIZE / args.batch)
    shared = {"epochs": args.epochs, "seed": args.seed, "batch": args.batch}
    runs = []
    # disable=None: no bar where stderr is a file and not a terminal.
    with require("tqdm", "demo").tqdm(total=total, unit="step", disable=None, file=sys.stderr) as bar:
        for (network, make), rate in product(DEMO.items(), args.rates):
            for method in make_methods(args):
                bar.set_description(f"{network} {method.name} {rate:g}")
                runs.append(train(network, build(make, args.seed), method, rate, data, tick=bar.update, **shared))
    return runs


def _summary(runs: Sequence[Run], costs: Sequence[StepCost], results: dict[str, Any]) -> str:
    table = format_report(best_runs(runs), runs, costs)
    return f"{table}\n\n{results['conclusion']}\n\n{results['seconds']:.0f} s in all. Curves: {results['plot']}"


def _settings(args: argparse.Namespace, method: str) -> dict[str, Any]:
    return {
        "aggregator": method,
        "batch": args.batch,
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
