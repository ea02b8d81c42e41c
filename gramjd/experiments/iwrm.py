"""`gramjd paper iwrm`: the paper's image experiments, with their search for a learning rate for every aggregator.

Every run is a line in a journal; started again, the command goes on where it was stopped. What a step costs is measured
last, apart from the runs. Without options it is the paper's protocol on scikit-learn's digits, which takes hours;
`--budget` ends it, and fewer rates or seeds shorten it.
"""

from __future__ import annotations

import argparse
import copy
from itertools import product

from gramjd import arguments
from gramjd.errors import InputError
from gramjd.experiments import aggregators, iwrm_report
from gramjd.experiments.data.sets import DATA, epochs_of
from gramjd.experiments.networks import build
from gramjd.experiments.protocol import Plan
from gramjd.experiments.results import Journal, as_text
from gramjd.experiments.running import progress, threads
from gramjd.experiments.steps import Task, over_plain
from gramjd.experiments.studies import Study, advance, count, studies
from gramjd.experiments.training import Method, train
from gramjd.extras import require
from gramjd.profiling.environment import describe

BEGUN, BEGUN_RATE = 2, 0.05  # epochs and rate of plain SGD before steps are timed: early Gramians are easier to solve

add_arguments = arguments.paper_iwrm


def run(args: argparse.Namespace) -> int:
    """Make the runs that are missing, then report on all that the journal holds."""
    require("matplotlib", "demo")  # before the training, not after it
    journal = Journal(args.journal)
    with threads(args.threads):
        finished = _advance(journal, args)
        if args.budget != 0:
            _measure_costs(journal, args)
    done = journal.runs()
    if not done:
        raise InputError(f"{args.journal} holds no run and the budget leaves no time for one")
    results = {"environments": journal.environments(), "studies": iwrm_report.summarise(done, journal.costs)}
    plots = iwrm_report.save(results["studies"], args.out)
    if args.json:
        print(as_text(results))
        return 0
    print(iwrm_report.table(results["studies"]))
    print(f"\n{len(done)} runs in {args.journal}, {len(studies(done))} searches. Plots: {', '.join(map(str, plots))}")
    if not finished:
        print("The budget is used up before all runs were made: start the same command again to go on.")
    return 0


def _measure_costs(journal: Journal, args: argparse.Namespace) -> None:
    """What a step costs with each aggregator, on a network that has begun to learn; only what the journal lacks."""
    names = aggregators.select(args.weightings)
    lacking = [n for n in args.batch if set(names) - set(journal.costs(data=args.data, batch=n))]
    if not lacking:
        return
    data, model = DATA[args.data].load(args.root, 0), build(DATA[args.data].network, 0)
    train(args.data, model, Method("SGD"), BEGUN_RATE, data, epochs=BEGUN, seed=0)
    for batch in lacking:
        on = Task(lambda: copy.deepcopy(model), data.train_images[:batch], data.train_labels[:batch])
        over = over_plain(on, names, rounds=args.rounds)
        journal.append({"costs": {"data": args.data, "batch": batch, "rounds": args.rounds, "over_plain": over}})


def _advance(journal: Journal, args: argparse.Namespace) -> bool:
    plan = Plan(args.rates_from, args.rates_to, args.fine, args.search_seeds, args.seeds, args.widen)
    if plan.seeds < plan.search_seeds or plan.low > plan.high:
        raise InputError("expected --rates-from below --rates-to and at least as many --seeds as --search-seeds")
    epochs = args.epochs or epochs_of(args.data, args.optimizer)
    wanted = [
        (Study(args.data, name, args.optimizer, batch, epochs), plan)
        for batch, name in product(args.batch, aggregators.select(args.weightings))
    ]
    if args.budget == 0:
        return False
    environment = describe(packages=("torch", "gramjd", "scikit-learn"))
    if environment not in journal.environments():
        journal.append({"environment": environment})
    with progress("run", total=len(wanted) * count(plan)) as bar:

        def tick(study: Study, rate: float, seed: int) -> None:
            bar.update()
            bar.set_description(f"{study.data} {study.weighting} batch {study.batch} rate {rate:g} seed {seed}")

        seconds = float("inf") if args.budget is None else args.budget
        return advance(journal, wanted, root=args.root, seconds=seconds, tick=tick)
