"""What the runs of `gramjd paper tasks` come to: table and figure, at equal steps and at equal time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gramjd.experiments.protocol import best_rate, mean_areas
from gramjd.experiments.report import align, mean_and_error, rounded, with_error
from gramjd.experiments.results import Journal
from gramjd.experiments.tasks_methods import SUM
from gramjd.experiments.tasks_results import Run, areas, select, studies
from gramjd.experiments.tasks_training import FORMS, Study

HEADER = (
    *("method", "runs", "best rate", "seeds", "training loss", "upper left, %", "lower right, %"),
    *("both, minus plain sum", "time of a step", "both at equal time, minus plain sum"),
)
TITLES = {"equal": "equal losses", "unequal": "loss of the lower right digit times 10"}
NUMBERS = ("loss", "upper_left", "lower_right", "difference", "at_equal_time")


def summarise(journal: Journal) -> dict[str, Any]:
    """One entry per search, under `entries`: settings, the mean training loss of every rate, results at the best one.

    `difference` is the mean accuracy of both tasks minus that of the plain sum, pair by pair of runs with one seed;
    `at_equal_time` the same at the moment at which the plain sum ends.
    """
    runs = journal.runs()
    return {"entries": [_summary(runs, study, journal.costs(batch=study.batch)) for study in studies(runs)]}


def _summary(runs: Sequence[Run], study: Study, over_sum: Mapping[str, float]) -> dict[str, Any]:
    by_rate = areas(runs, study)
    common = min(len(of) for of in by_rate.values())
    searched = mean_areas(by_rate, common)
    best = best_rate(searched)
    mine = _at_best(runs, study)
    plain = {run["seed"]: run for run in _at_best(runs, dataclasses.replace(study, method=SUM))}
    cost = over_sum.get(study.method)
    return {
        **dataclasses.asdict(study),
        "runs": sum(len(of) for of in by_rate.values()),
        "seconds": round(sum(run["seconds"] for run in select(runs, study)), 1),
        "rates": {f"{rate:g}": rounded(searched[rate]) for rate in sorted(searched)},
        "search_seeds": common,
        "over_sum": cost,
        "best": None if best is None else {"rate": best, **_over_seeds(mine, plain, cost)},
    }


def _at_best(runs: Sequence[Run], study: Study) -> list[Run]:
    """The runs with the rate that the search has found so far."""
    by_rate = areas(runs, study)
    if not by_rate:
        return []
    best = best_rate(mean_areas(by_rate, min(len(of) for of in by_rate.values())))
    return [run for run in select(runs, study) if run["rate"] == best]


def _over_seeds(runs: Sequence[Run], plain: Mapping[int, Run], cost: float | None) -> dict[str, Any]:
    """What the runs of one rate came to, those that diverged left out; `plain` are those of the plain sum by seed."""
    kept = [run for run in runs if not run["diverged"]]
    pairs = [(run, plain[run["seed"]]) for run in kept if run["seed"] in plain and not plain[run["seed"]]["diverged"]]
    timed = [] if cost is None else [both_at(a, a["epochs"] / cost) - both_at(b, b["epochs"]) for a, b in pairs]
    last = [run["accuracy"][-1] for run in kept]
    conflicts = [run["conflicts"] for run in kept]
    return {
        "seeds": sorted(run["seed"] for run in kept),
        "diverged": len(runs) - len(kept),
        "loss": mean_and_error([sum(run["loss"][-1]) / 2 for run in kept]),
        "upper_left": mean_and_error([100 * upper for upper, _ in last]),
        "lower_right": mean_and_error([100 * lower for _, lower in last]),
        "difference": mean_and_error([100 * (both_at(a, a["epochs"]) - both_at(b, b["epochs"])) for a, b in pairs]),
        "at_equal_time": mean_and_error([100 * x for x in timed]),
        "conflicts": mean_and_error(conflicts),
    }


def both_at(run: Run, epoch: float) -> float:
    """Mean accuracy of both tasks after so many epochs, on the line between those around it; the last one past the end.

    >>> both_at({"accuracy": [[0.0, 0.2], [0.5, 0.7]]}, 0.5)
    0.35
    """
    means = [sum(pair) / 2 for pair in run["accuracy"]]
    before = min(int(epoch), len(means) - 1)
    after = min(before + 1, len(means) - 1)
    return float(means[before] + (epoch - before) * (means[after] - means[before]))


def cells(entry: Mapping[str, Any]) -> list[str]:
    """One entry as the cells of `HEADER`."""
    best, cost = entry["best"], entry["over_sum"]
    time = "-" if cost is None else f"{cost:.2f}"
    if best is None:
        return [entry["method"], str(entry["runs"]), "none converged", *"-----", time, "-"]
    numbers = [with_error(best[name], "{:.3f}" if name == "loss" else "{:z.1f}") for name in NUMBERS]
    if entry["method"] == SUM:
        numbers[-2:] = ["", ""]
    seeds = f"{len(best['seeds'])} of {len(best['seeds']) + best['diverged']}"
    return [entry["method"], str(entry["runs"]), f"{best['rate']:.2g}", seeds, *numbers[:4], time, numbers[4]]


def table(results: Mapping[str, Any]) -> str:
    """The entries as text, a block per form."""
    blocks = []
    for form in FORMS:
        rows = [cells(entry) for entry in results["entries"] if entry["form"] == form]
        if rows:
            blocks.append(f"{TITLES[form]}\n{align([list(HEADER), *rows])}")
    return "\n\n".join(blocks)
