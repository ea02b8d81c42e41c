"""`gramjd paper all`: every experiment one after the other, short unless `--full` is given."""

from __future__ import annotations

import argparse
from types import ModuleType

from gramjd import arguments
from gramjd.experiments import convergence, cost, iwrm, properties, trajectories

# The digits' protocol that profiling/results/paper was made with: 13 of the paper's 22 rates, 8 instead of 50 in the
# second stage, searched with one seed, four seeds at the best rate.
REDUCED = ("--rates-from", "1e-3", "--rates-to", "10", "--fine", "8", "--search-seeds", "1", "--seeds", "4")

# Command, options of the short form, options of the full form.
STAGES: tuple[tuple[ModuleType, tuple[str, ...], tuple[str, ...]], ...] = (
    (trajectories, (), ()),
    (properties, ("--examples", "25"), ()),
    (convergence, ("--seeds", "1", "--steps", "300"), ()),
    (cost, ("--quick",), ()),
    (iwrm, (*REDUCED, "--weightings", "upgrad,mean,mgda,dualproj,pcgrad"), ()),
)


add_arguments = arguments.paper_all


def run(args: argparse.Namespace) -> int:
    """Run all; 1 if any of them says so."""
    worst = 0
    for module, short, full in STAGES:
        words = [*(full if args.full else short), "--out", str(args.out)]
        if module is iwrm:
            journal = str(args.out / "iwrm.jsonl")
            words += ["--journal", journal, "--data", args.data, "--root", str(args.root), "--budget", args.budget]
        print(f"\n== {module.__name__.rsplit('.', 1)[1]}\n", flush=True)
        worst = max(worst, run_words(module, words))
    return worst


def run_words(module: ModuleType, words: list[str]) -> int:
    """One command with the given options, the others at their defaults."""
    parser = argparse.ArgumentParser(prog=module.__name__)
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(words)))
