"""`gramjd demo iwrm`: the paper's instance-wise setting, one objective per training image, in about a minute.

Every network is trained with plain SGD and with Jacobian descent from the same weights, on the same batches,
at the same learning rates. Each method's best rate is the one with the least area under its loss curve.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from itertools import product

from gramjd import aggregation, arguments
from gramjd.errors import InputError
from gramjd.experiments import demo_plots, plots
from gramjd.experiments.aggregators import BY_CLASS
from gramjd.experiments.data.images import TRAIN_SIZE, Images
from gramjd.experiments.data.sets import load_digits
from gramjd.experiments.demo_report import Costs, conclusion, format_report
from gramjd.experiments.networks import DEMO, build
from gramjd.experiments.results import write
from gramjd.experiments.running import progress, threads
from gramjd.experiments.steps import Task, by_method, compare
from gramjd.experiments.training import Method, Run, train
from gramjd.extras import require

add_arguments = arguments.demo_iwrm


def run(args: argparse.Namespace) -> int:
    """Train, print the table (or JSON), save the plot; 1 if a method diverged at all of its rates."""
    require("matplotlib", "demo")  # before the training, not after it
    start = time.perf_counter()
    with threads(args.threads):
        methods = make_methods(args)
        data = load_digits(args.seed)
        if args.batch > TRAIN_SIZE:
            raise InputError(f"got --batch {args.batch}, and there are {TRAIN_SIZE} training images")
        runs = _train_all(args, data)
        costs = _costs(args, methods, data)
    best = best_runs(runs)
    spent = {key: cost.to_dict("milliseconds", "over_first")["milliseconds"]["median"] for key, cost in costs.items()}
    plot = plots.save(demo_plots.draw(runs, best, args.batch, spent), args.out / "iwrm.png")
    seconds, said = time.perf_counter() - start, conclusion(best, costs, args.batch)
    given = {name: getattr(args, name) for name in ("batch", "epochs", "rates", "seed", "threads", "compile")}
    results = {
        "settings": {"aggregator": methods[1].name, **given, "train_images": TRAIN_SIZE},
        "seconds": round(seconds, 1),
        "conclusion": said,
        "best": [run.to_dict() for run in best],
        "runs": [run.to_dict() for run in runs],
        "costs": [
            {"network": network, "method": method, **cost.to_dict("milliseconds", "over_first")}
            for (network, method), cost in costs.items()
        ],
        "plot": str(plot),
    }
    text = write(results, args.out / "results.json")
    report = f"{format_report(best, runs, costs)}\n\n{said}\n\n{seconds:.0f} s in all. Curves: {plot}"
    print(text if args.json else report)
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
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.network, run.method), []).append(run)
    return [min(group, key=lambda run: run.area) for group in groups.values()]


def _train_all(args: argparse.Namespace, data: Images) -> list[Run]:
    total = len(DEMO) * len(args.rates) * 2 * args.epochs * math.ceil(TRAIN_SIZE / args.batch)
    shared = {"epochs": args.epochs, "seed": args.seed, "batch": args.batch, "compiled": args.compile}
    runs = []
    with progress("step", total=total) as bar:
        for (network, make), rate in product(DEMO.items(), args.rates):
            for method in make_methods(args):
                bar.set_description(f"{network} {method.name} {rate:g}")
                runs.append(train(network, build(make, args.seed), method, rate, data, tick=bar.update, **shared))
    return runs


def _costs(args: argparse.Namespace, methods: Sequence[Method], data: Images) -> Costs:
    contenders = {method.name: by_method(method) for method in methods}
    batch = data.train_images[: args.batch], data.train_labels[: args.batch]
    return {
        (network, method): cost
        for network, make in DEMO.items()
        for method, cost in compare(Task(make, *batch, args.seed), contenders, rounds=args.rounds, scale=1e3).items()
    }
