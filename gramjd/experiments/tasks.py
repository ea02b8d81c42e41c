"""`gramjd paper tasks`: two overlaid digits, a task each; scalarisations and aggregators, each at its best rate.

Every run is a line in a journal; started again, the command goes on where it was stopped. The images are pairs of
MNIST's digits, whose files are looked for in the folder `mnist` of `--root`; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from functools import lru_cache

from gramjd import arguments
from gramjd.errors import InputError
from gramjd.experiments import tasks_figure, tasks_report
from gramjd.experiments.data import overlaid
from gramjd.experiments.protocol import Plan, missing
from gramjd.experiments.results import Journal, as_text
from gramjd.experiments.running import progress, threads
from gramjd.experiments.studies import count
from gramjd.experiments.tasks_methods import select
from gramjd.experiments.tasks_results import areas
from gramjd.experiments.tasks_training import FORMS, Study, make, step_costs
from gramjd.extras import require
from gramjd.profiling.environment import describe

add_arguments = arguments.paper_tasks


def run(args: argparse.Namespace) -> int:
    """Make the runs that are missing, then report on all that the journal holds."""
    require("matplotlib", "demo")  # before the training, not after it
    journal = Journal(args.journal)
    methods = select(args.methods)
    plan = Plan(args.rates_from, args.rates_to, args.fine, args.search_seeds, args.seeds, widen=True)
    if plan.seeds < plan.search_seeds or plan.low > plan.high:
        raise InputError("expected --rates-from below --rates-to and at least as many --seeds as --search-seeds")
    with threads(args.threads):
        finished = args.budget != 0 and _advance(journal, methods, plan, args)
    results = {"environments": journal.environments(), **tasks_report.summarise(journal)}
    if not results["entries"]:
        raise InputError(f"{args.journal} holds no run and the budget leaves no time for one")
    plot = tasks_figure.save(results["entries"], args.out)
    if args.json:
        print(as_text(results))
        return 0
    print(tasks_report.table(results))
    print(f"\n{sum(entry['runs'] for entry in results['entries'])} runs in {args.journal}. Plot: {plot}")
    if not finished:
        print("The budget is used up before all runs were made: start the same command again to go on.")
    return 0


def _advance(journal: Journal, methods: Sequence[str], plan: Plan, args: argparse.Namespace) -> bool:
    """Costs of a step first, then every run that is missing; True when nothing is left to do."""
    start = time.perf_counter()
    load = lru_cache(maxsize=16)(lambda seed: overlaid.load(args.root, seed, args.images))
    environment = describe(packages=("torch", "gramjd"))
    if environment not in journal.environments():
        journal.append({"environment": environment})
    if set(methods) - set(journal.costs(batch=args.batch)):
        journal.append({"costs": step_costs(methods, load(0), args.batch, args.rounds)})
    wanted = [Study(form, name, args.images, args.batch, args.epochs) for name in methods for form in FORMS]
    with progress("run", total=len(wanted) * count(plan)) as bar:
        for study in wanted:
            while todo := missing(plan, areas(journal.runs(), study)):
                for rate, seed in todo:
                    if time.perf_counter() - start >= (math.inf if args.budget is None else args.budget):
                        return False
                    bar.update()
                    bar.set_description(f"{study.form} {study.method} rate {rate:g} seed {seed}")
                    journal.append(make(study, rate, seed, load(seed)))
    return True
