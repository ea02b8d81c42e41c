"""What the runs of `gramjd paper iwrm` come to: per search its best rate, mean and standard error over the seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gramjd.experiments import plots
from gramjd.experiments.aggregators import ENTRIES
from gramjd.experiments.data.sets import DATA
from gramjd.experiments.protocol import best_rate, mean_areas
from gramjd.experiments.report import align, mean_and_error, rounded, with_error
from gramjd.experiments.studies import Study, areas, select, studies
from gramjd.profiling.figure_style import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}
Costs = Callable[..., Mapping[str, float]]
HEADER = (
    *("aggregator", "optimiser, batch", "runs", "best rate", "seeds that converged", "area", "last loss"),
    *("held-out, %", "cosine, first epoch", "cosine, last epoch", "step over SGD", "loss at equal time"),
)


def summarise(runs: Sequence[Mapping[str, Any]], costs: Costs = lambda **same: {}) -> list[dict[str, Any]]:
    """One entry per search: its settings, every rate with its area (of the search's seeds), the curves at the best.

    A search that is under way has the best rate so far: the least mean area among the rates with most seeds tried.

    Args:
        runs: lines of a journal.
        costs: from a set and a batch size to the time of a step over plain SGD's, per aggregator.
    """
    return [_summary(runs, study, costs) for study in studies(runs)]


def _summary(runs: Sequence[Mapping[str, Any]], study: Study, costs: Costs) -> dict[str, Any]:
    of_study, by_rate = select(runs, study), areas(runs, study)
    # The search is by seed 0, 1, ...: those that every rate was tried with.
    common = min(len(of) for of in by_rate.values())
    searched = mean_areas(by_rate, common)
    best = best_rate(searched)
    at_best = [run for run in of_study if run["rate"] == best]
    # What is called Mean is plain SGD in other words, and takes no more time than it.
    known = costs(data=study.data, batch=study.batch)
    cost = 1.0 if study.weighting == "Mean" and known else known.get(study.weighting)
    return {
        **dataclasses.asdict(study),
        "runs": sum(len(of) for of in by_rate.values()),
        "refused": sum("refused" in run for run in of_study),
        "seconds": round(sum(run["seconds"] for run in of_study), 1),
        "rates": {f"{rate:g}": rounded(searched[rate]) for rate in sorted(searched)},
        "search_seeds": common,
        "over_sgd": cost,
        "best": None if best is None else {"rate": best, **_over_seeds(at_best, cost)},
    }


def at_equal_time(loss: Sequence[float], cost: float) -> float:
    """The loss when plain SGD would have done all epochs, by a straight line between two epochs.

    Args:
        loss: after 0, 1, ... epochs.
        cost: time of a step over that of SGD.

    >>> at_equal_time([4.0, 2.0, 1.0], 4 / 3)
    1.5
    """
    epochs = min((len(loss) - 1) / cost, len(loss) - 1)
    before = min(int(epochs), len(loss) - 2)
    return loss[before] + (epochs - before) * (loss[before + 1] - loss[before])


def _over_seeds(runs: Sequence[Mapping[str, Any]], cost: float | None) -> dict[str, Any]:
    """What the runs of one rate came to, those that diverged left out."""
    chosen = [run for run in runs if not run["diverged"]]
    curves = {name: zip(*(run[name] for run in chosen), strict=True) for name in ("loss", "cosine")}
    return {
        "seeds": sorted(run["seed"] for run in chosen),
        "diverged": len(runs) - len(chosen),
        **{name: mean_and_error([run[name] for run in chosen]) for name in ("area", "accuracy")},
        **{name: [mean_and_error(values) for values in curve] for name, curve in curves.items()},
        "equal_time": mean_and_error([] if cost is None else [at_equal_time(run["loss"], cost) for run in chosen]),
    }


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The entries as text, a block per image set."""
    blocks = []
    for data in dict.fromkeys(entry["data"] for entry in entries):
        rows = [list(HEADER), *(cells(entry) for entry in entries if entry["data"] == data)]
        blocks.append(f"{DATA[data].title}\n{align(rows)}")
    return "\n\n".join(blocks)


def cells(entry: Mapping[str, Any]) -> list[str]:
    """One entry as the cells of `HEADER`."""
    best = entry["best"]
    first = [entry["weighting"], f"{entry['optimizer']}, {entry['batch']}", str(entry["runs"])]
    if best is None:
        return [*first, "none converged", *("-" for _ in HEADER[4:])]
    return [
        *first,
        f"{best['rate']:.3g}",
        f"{len(best['seeds'])} of {len(best['seeds']) + best['diverged']}",
        with_error(best["area"]),
        with_error(best["loss"][-1]),
        with_error([None if x is None else 100 * x for x in best["accuracy"]], "{:.1f}"),
        with_error(best["cosine"][0], "{:.2f}"),
        with_error(best["cosine"][-1], "{:.2f}"),
        "-" if entry["over_sgd"] is None else f"{entry['over_sgd']:.2f}",
        with_error(best["equal_time"]),
    ]


def draw_band(axes: Axes, x: Sequence[float], pairs: Sequence[Sequence[float | None]], label: str) -> Axes:
    """A mean as a line, and one standard error to both sides as a band.

    Args:
        axes: where to draw.
        x: the horizontal positions.
        pairs: `[mean, error]` at each; a mean that is missing leaves a gap.
        label: a name of Table 1, which gives colour and dash.
    """
    colour, dash = ENTRIES[label].colour, ENTRIES[label].dash
    nan = float("nan")
    mean = [nan if m is None else m for m, _ in pairs]
    error = [0.0 if e is None else e for _, e in pairs]
    style: dict[str, Any] = {"color": colour, "ls": dash, "linewidth": 2.4 if label == "UPGrad" else 1.5}
    axes.plot(x, mean, label=label, marker="o" if len(x) == 1 else None, **style)
    low, high = ([m + sign * e for m, e in zip(mean, error, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    return axes


def draw(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss on the left, cosine on the right; each aggregator at the best rate of its search.

    Args:
        entries: from `summarise`, of one set, optimiser and batch size.
    """
    first = entries[0]
    seeds = max(len(entry["best"]["seeds"]) for entry in entries)
    figure = plots.new_figure(
        4.6,
        f"{DATA[first['data']].title}, one objective per image, batch {first['batch']}, "
        f"{OPTIMIZERS[first['optimizer']]}; "
        f"each at its best rate; mean and standard error of the seeds that converged, at most {seeds}",
    )
    left, right = figure.subplots(1, 2)
    for entry in entries:
        best = entry["best"]
        draw_band(left, range(len(best["loss"])), best["loss"], entry["weighting"])
        draw_band(right, plots.middles(best["cosine"]), best["cosine"], entry["weighting"])
    plots.loss_axis(left)
    right.set_ylabel("cosine of update and mean gradient")
    right.set_ylim(top=1.03)
    for axes in (left, right):
        clean(axes).set_xlabel("epoch")
    plots.legend_beside(figure)
    return figure


def save(entries: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """A plot per image set, optimiser and batch size; returns the files."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for entry in entries:
        if entry["best"] is not None:
            groups.setdefault((entry["data"], entry["optimizer"], str(entry["batch"])), []).append(entry)
    return [plots.save(draw(of), folder / f"iwrm-{'-'.join(key)}.png") for key, of in groups.items()]
