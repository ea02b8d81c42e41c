"""What the runs of `gramjd demo pinns` come to: errors per problem and method, over time, and on the domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gramjd.experiments import plots
from gramjd.experiments.pinn_problems import PROBLEMS
from gramjd.experiments.pinn_training import METHODS, SEARCH_SEED, final_model
from gramjd.experiments.report import align
from gramjd.experiments.results import Journal
from gramjd.extras import require
from gramjd.profiling.figure_style import BLUE, GREY, ORANGE, PINK, SKY, clean, plain_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEY = ("problem", "method", "choice", "seed", "seconds")
HEADER = ("problem", "method", "error, median", "least", "largest", "of the unknown", "loss", "steps", "options")
COLOURS = {"adam": GREY, "lbfgs": ORANGE, "lm": BLUE, "lm-scaled": SKY, "spring": PINK}

Run = Mapping[str, Any]


def best_choice(runs: Sequence[Run], keys: Mapping[str, Any]) -> int:
    """The option with the least error on the seed of the search; the only one, where there is one."""
    if len(METHODS[keys["method"]].choices) == 1:
        return 0
    searched = [run for run in runs if run["seed"] == SEARCH_SEED and _matches(run, keys)]
    return int(min(searched, key=_error)["choice"])


def _matches(run: Run, keys: Mapping[str, Any]) -> bool:
    return all(run[name] == value for name, value in keys.items())


def _error(run: Run) -> float:
    return float("inf") if run["error"] is None or run["failed"] else float(run["error"])


def summarise(journal: Journal) -> dict[str, Any]:
    """An entry per problem and method: errors of the seeds at the best option, in the order of the tables."""
    runs, entries = journal.runs(), []
    for problem in PROBLEMS:
        for method in METHODS:
            for seconds in sorted({r["seconds"] for r in runs if (r["problem"], r["method"]) == (problem, method)}):
                entries += _entry(runs, {"problem": problem, "method": method, "seconds": seconds})
    return {"environments": journal.environments(), "entries": entries}


def _entry(runs: Sequence[Run], keys: dict[str, Any]) -> list[dict[str, Any]]:
    best = best_choice(runs, keys)
    chosen = [run for run in runs if _matches(run, {**keys, "choice": best}) and run["seed"] != SEARCH_SEED]
    if not chosen:
        return []
    found = sorted(chosen, key=lambda run: run["seed"])
    unknowns = [run["unknown"] for run in found if run["unknown"] is not None]
    return [
        {
            **keys,
            "options": METHODS[keys["method"]].choices[best],
            "seeds": [run["seed"] for run in found],
            "errors": [run["error"] for run in found],
            "unknown": median(unknowns) if unknowns else None,
            "loss": median(run["losses"][-1] for run in found),
            "steps": median(run["steps"] for run in found),
            "failed": sum(bool(run["failed"]) for run in found),
        }
    ]


def rows(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Cells of the table, under a head."""
    found = [list(HEADER)]
    for entry in entries:
        errors = [float("inf") if e is None else e for e in entry["errors"]]
        numbers = [f"{x:.1e}" for x in (median(errors), min(errors), max(errors))]
        unknown = "" if entry["unknown"] is None else f"{entry['unknown']:.1e}"
        options = ", ".join(f"{name} {value:g}" for name, value in entry["options"].items())
        failed = f", {entry['failed']} failed" if entry["failed"] else ""
        found.append(
            [
                f"{PROBLEMS[entry['problem']].title}, {entry['seconds']:g} s",
                *(METHODS[entry["method"]].title, *numbers, unknown, f"{entry['loss']:.1e}"),
                *(f"{entry['steps']:.0f}{failed}", options),
            ]
        )
    return found


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The table, aligned."""
    return align(rows(entries))


def save(journal: Journal, entries: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """`pinns-errors.png`: error over time; `pinns-PROBLEM.png`: solution, and where the errors are."""
    found = [plots.save(draw_errors(journal.runs(), entries), folder / "pinns-errors.png")]
    for problem in dict.fromkeys(entry["problem"] for entry in entries):
        mine = [entry for entry in entries if entry["problem"] == problem]
        found.append(plots.save(draw_solution(problem, mine), folder / f"pinns-{problem}.png"))
    return found


def draw_errors(runs: Sequence[Run], entries: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel per problem: the relative error over CPU time, a line per seed."""
    problems = list(dict.fromkeys(entry["problem"] for entry in entries))
    figure = plots.new_figure(3.4, "Relative error of the solution over CPU time, a line per seed")
    grid = figure.subplots(1, len(problems), squeeze=False)[0]
    for axes, problem in zip(grid, problems, strict=True):
        for entry in (entry for entry in entries if entry["problem"] == problem):
            choice = METHODS[entry["method"]].choices.index(entry["options"])
            keys = {name: entry[name] for name in ("problem", "method", "seconds")} | {"choice": choice}
            mine = [run for run in runs if _matches(run, keys) and run["seed"] in entry["seeds"]]
            for place, run in enumerate(mine):
                label = "_" * bool(place) + METHODS[entry["method"]].title  # one with an underscore is in no legend
                axes.plot(run["times"][1:], run["errors"][1:], color=COLOURS[entry["method"]], lw=1, label=label)
        axes.set(xscale="log", yscale="log", xlabel="CPU time, s", title=PROBLEMS[problem].title)
        clean(axes)
        plain_decades(axes.xaxis, (1, 5))
        plain_decades(axes.yaxis)
    grid[0].set_ylabel("relative L2 error")
    plots.legend_beside(figure)
    return figure


def draw_solution(problem: str, entries: Sequence[Mapping[str, Any]]) -> Figure:
    """The solution, and the absolute error of each method's network for its first seed, trained again."""
    figure = plots.new_figure(3.0, f"{PROBLEMS[problem].title}: solution, and absolute error of one seed")
    grid = figure.subplots(1, 1 + len(entries), squeeze=False)[0]
    points = PROBLEMS[problem].grid()
    exact = PROBLEMS[problem].solution(points)
    panels = [("solution", exact)]
    for entry in entries:
        choice = METHODS[entry["method"]].choices.index(entry["options"])
        model = final_model(problem, entry["method"], choice, entry["seeds"][0], entry["seconds"])
        with torch.no_grad():
            panels.append((METHODS[entry["method"]].title, (model(points)[:, 0] - exact).abs()))
    for axes, (title, values) in zip(grid, panels, strict=True):
        axes.set_title(title, fontsize=9)
        _panel(figure, axes, points, values, title != "solution")
        axes.set_xlabel(PROBLEMS[problem].names[0])
    if points.shape[1] == 2:
        grid[0].set_ylabel(PROBLEMS[problem].names[1], rotation=0)
    return figure


def _panel(figure: Figure, axes: Axes, points: Tensor, values: Tensor, is_error: bool) -> None:
    """A curve over one coordinate, or colours over two: the first of them to the right."""
    if points.shape[1] == 1:
        axes.plot(points[:, 0].numpy(), values.numpy(), color=BLUE, lw=1)
        axes.set(yscale="log" if is_error else "linear", ylabel="absolute error" if is_error else "u")
        clean(axes)
        return
    side = round(len(points) ** 0.5)
    low, high = points.amin(0).tolist(), points.amax(0).tolist()
    extent = (low[0], high[0], low[1], high[1])
    image = axes.imshow(values.view(side, side).T.numpy(), origin="lower", extent=extent, aspect="auto")
    bar = figure.colorbar(image, ax=axes, orientation="horizontal", format="%g")
    bar.set_label("absolute error" if is_error else "u")
    bar.locator = require("matplotlib.ticker", "demo").MaxNLocator(2)
    bar.update_ticks()
    axes.set(xticks=[low[0], high[0]], yticks=[low[1], high[1]])
