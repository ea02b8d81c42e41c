"""`gramjd demo pinns`: Levenberg-Marquardt and SPRING beside Adam and L-BFGS on differential equations, at equal time.

Every run is a line in a journal; started again, the command goes on where it was stopped. Where a method has options to
choose from, each is run with a seed of its own, and the best goes on to the seeds that are reported.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any

from gramjd import arguments
from gramjd.errors import InputError
from gramjd.experiments import pinn_report
from gramjd.experiments.pinn_problems import PROBLEMS
from gramjd.experiments.pinn_training import METHODS, SEARCH_SEED, train
from gramjd.experiments.results import Journal, as_text
from gramjd.experiments.running import progress, threads
from gramjd.extras import require
from gramjd.profiling.environment import describe

add_arguments = arguments.demo_pinns


def run(args: argparse.Namespace) -> int:
    """Make the runs that are missing, then report on all that the journal holds."""
    require("matplotlib", "demo")  # before the runs, not after them
    if args.seeds > SEARCH_SEED:
        raise InputError(f"got --seeds {args.seeds}; expected at most {SEARCH_SEED}, as that seed is searched with")
    journal = Journal(args.journal)
    problems, methods = _chosen(args.problems, PROBLEMS, "problem"), _chosen(args.methods, METHODS, "method")
    with threads(1):  # CPU time counts all threads, and these networks gain nothing from a second one
        finished = _advance(journal, problems, methods, args)
        if not journal.runs():
            raise InputError(f"{args.journal} holds no run and the budget leaves no time for one")
        results = pinn_report.summarise(journal)
        plots = [] if args.no_plots else pinn_report.save(journal, results["entries"], args.out)
    if args.json:
        print(as_text(results))
        return 0
    print(pinn_report.table(results["entries"]))
    print(f"\n{len(journal.runs())} runs in {args.journal}.{' Plots: ' if plots else ''}{', '.join(map(str, plots))}")
    if not finished:
        print("The budget is used up before all runs were made: start the same command again to go on.")
    return 0


def wanted(
    runs: Sequence[dict[str, Any]], problems: Sequence[str], methods: Sequence[str], seeds: int, seconds: float | None
) -> Iterator[dict[str, Any]]:
    """The runs that are missing, as the fields that identify them; ask anew after each."""
    done = {tuple(run[name] for name in pinn_report.KEY) for run in runs}
    for problem in problems:
        for method in methods:
            length = PROBLEMS[problem].seconds if seconds is None else seconds
            keys = {"problem": problem, "method": method, "seconds": length}
            choices = range(len(METHODS[method].choices))
            search = [{**keys, "choice": c, "seed": SEARCH_SEED} for c in choices] if len(choices) > 1 else []
            missing = [key for key in search if tuple(key[name] for name in pinn_report.KEY) not in done]
            if not missing:
                best = pinn_report.best_choice(runs, keys)
                final = [{**keys, "choice": best, "seed": seed} for seed in range(seeds)]
                missing = [key for key in final if tuple(key[name] for name in pinn_report.KEY) not in done]
            yield from missing


def _advance(journal: Journal, problems: Sequence[str], methods: Sequence[str], args: argparse.Namespace) -> bool:
    """Make runs until none is missing (True) or the budget is used up (False)."""
    start, limit = time.perf_counter(), float("inf") if args.budget is None else args.budget
    with progress("run") as bar:
        while True:
            key = next(wanted(journal.runs(), problems, methods, args.seeds, args.seconds), None)
            if key is None or time.perf_counter() - start >= limit:
                return key is None
            environment = describe(packages=("torch", "gramjd"))
            if environment not in journal.environments():
                journal.append({"environment": environment})
            bar.update()
            bar.set_description(f"{key['problem']} {key['method']} {key['choice']} seed {key['seed']}")
            journal.append({**key, **train(**key)})


def _chosen(names: str, table: dict[str, Any], what: str) -> list[str]:
    """The keys that were named by commas, or all."""
    if names == "all":
        return list(table)
    found = names.split(",")
    for name in found:
        if name not in table:
            raise InputError(f"{name!r} is no {what}; expected some of: {', '.join(table)}, or all")
    return found
