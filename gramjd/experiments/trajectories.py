"""`gramjd paper trajectories`: the paths of all aggregators of Table 1 on the paper's two toy problems.

Two things are measured on each path. *Conflict*: the least `g_i . A(J) / (|g_i| max_j |g_j|)` over objectives and
steps; below zero, a small enough step increases objective i. *Stalling* on EWQ: after all steps one coordinate is still
farther from the optimum than `STALLED` times as far as the mean gradient leaves it, without having been oscillated to.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gramjd import arguments
from gramjd.experiments import aggregators, plots
from gramjd.experiments.report import align
from gramjd.experiments.results import write
from gramjd.experiments.running import progress, threads
from gramjd.experiments.toys import TOYS, Toy, path
from gramjd.extras import require
from gramjd.profiling.environment import describe
from gramjd.profiling.figure_style import BLUE, GREEN, ORANGE, PINK, VERMILION, plain_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STALLED = 5.0
HEADER = ("aggregator", "problem", "least gain", "largest increase", "steps with an increase", "stalled starts")
START_COLOURS = (VERMILION, BLUE, GREEN, ORANGE, PINK)
OBJECTIVE_COLOURS, OBJECTIVE_DASHES = (BLUE, VERMILION), ("-", "--")
COLUMNS = 4
LEVELS = 9

add_arguments = arguments.paper_trajectories


def run(args: argparse.Namespace) -> int:
    """Follow every path, save the plots and `trajectories.json`, print the table (or the JSON)."""
    require("matplotlib", "demo")
    names = aggregators.select(args.weightings)
    with threads(args.threads):
        paths = {key: _paths(toy, names, args.seed) for key, toy in TOYS.items()}
        found = {key: {name: examine(TOYS[key], name, of[name], args.seed) for name in of} for key, of in paths.items()}
    results = {"environment": describe(packages=("torch", "gramjd")), "seed": args.seed, "toys": found}
    text = write(results, args.out / "trajectories.json")
    drawn = [save(key, of, objectives, args.out) for key, of in paths.items() for objectives in (False, True)]
    print(text if args.json else f"{table(found)}\n\nPlots: {', '.join(map(str, drawn))}")
    return 0


def _paths(toy: Toy, names: Sequence[str], seed: int) -> dict[str, list[Tensor]]:
    """Name to one path per start."""
    found = {}
    for name in progress("aggregator", names, title=toy.title):
        entry = aggregators.ENTRIES[name]
        found[name] = [path(toy, entry.make(seed).aggregate, toy.rate * entry.toy_rate, start) for start in toy.starts]
    return found


def examine(toy: Toy, name: str, paths: Sequence[Tensor], seed: int) -> dict[str, Any]:
    """Where the paths end, how far they increased an objective, from which starts they stalled.

    Args:
        toy: the problem.
        name: the aggregator, to evaluate it along the paths.
        paths: one per start.
        seed: of the aggregator, as on the paths.
    """
    rises = [(toy.objectives(p)[1:] - toy.objectives(p)[:-1]) for p in paths]
    return {
        "rate": toy.rate * aggregators.ENTRIES[name].toy_rate,
        "ends": [p[-1].tolist() for p in paths],
        "least_gain": min(least_gain(toy, name, p, seed) for p in paths),
        "largest_increase": max(float(rise.max()) for rise in rises),
        "steps_with_increase": sum(int((rise > 0).any(1).sum()) for rise in rises),
        "stalled": [list(start) for start, p in zip(toy.starts, paths, strict=True) if stalled(toy, p)],
    }


def least_gain(toy: Toy, name: str, points: Tensor, seed: int) -> float:
    """Least `g_i . A(J) / (|g_i| max_j |g_j|)` along a path; zero gradients do not count."""
    aggregate, least = aggregators.ENTRIES[name].make(seed).aggregate, float("inf")
    for point in points[:-1]:
        J = toy.jacobian(point)
        lengths = J.norm(dim=1)
        gains = (J @ aggregate(J))[lengths > 0] / (lengths[lengths > 0] * lengths.amax())
        least = min(least, float(gains.amin())) if len(gains) else least
    return least


def stalled(toy: Toy, points: Tensor) -> bool:
    """Returns True if a path on EWQ is stuck.

    It is `STALLED` times farther from 0 than Mean's in a coordinate, and hardly moves. On EWQ each step of Mean takes
    `1 - rate` of each coordinate. Always False on CQF, whose optimum is a curve.

    >>> from gramjd.experiments.toys import EWQ
    >>> stalled(EWQ, torch.tensor([[0.0, -3.0]] * 51, dtype=torch.float64))
    True
    """
    if bool(toy.centres.any()):
        return False
    mean = points[0].abs() * (1 - toy.rate) ** toy.steps
    far = points[-1].abs() > STALLED * mean + 2 * (points[-1] - points[-2]).abs()
    return bool(far.any())


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The findings as text."""
    rows = [list(HEADER)]
    for key, by_name in found.items():
        for name, entry in by_name.items():
            cells = [f"{entry[field]:.1e}" for field in ("least_gain", "largest_increase")]
            stalls = f"{len(entry['stalled'])} of {len(entry['ends'])}" if key == "ewq" else "-"
            rows.append([name, key.upper(), *cells, str(entry["steps_with_increase"]), stalls])
    return align(rows)


def draw_paths(axes: Axes, toy: Toy, paths: Sequence[Tensor]) -> Axes:
    """Contours of both objectives, and the path [steps + 1, 2] from each start (circle) to its end (square)."""
    left, right, bottom, top = toy.window
    x, y = torch.linspace(left, right, 121), torch.linspace(bottom, top, 121)
    values = toy.objectives(torch.cartesian_prod(x, y).double()).view(121, 121, 2).permute(2, 1, 0)
    for value, colour in zip(values, OBJECTIVE_COLOURS, strict=True):
        # Evenly spaced in the root: a quadratic's contours are then evenly spaced too.
        levels = [(k / LEVELS) ** 2 * float(value.max()) for k in range(1, LEVELS)]
        axes.contour(x, y, value, levels=levels, colors=colour, linewidths=0.5, alpha=0.45)
    for points, colour in zip(paths, START_COLOURS, strict=False):
        axes.plot(*points.T, color=colour, linewidth=1.3)
        axes.plot(*points[0], "o", color=colour, markersize=4.5)
        axes.plot(*points[-1], "s", color=colour, markersize=4.5, markeredgecolor="black", markeredgewidth=0.6)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    return axes


def draw_objectives(axes: Axes, toy: Toy, paths: Sequence[Tensor]) -> Axes:
    """Both objectives along every path, over the steps: the second dashed."""
    for number, points in enumerate(paths):
        for k, (values, colour) in enumerate(zip(toy.objectives(points).T, OBJECTIVE_COLOURS, strict=True)):
            style: dict[str, Any] = {"color": colour, "ls": OBJECTIVE_DASHES[k], "linewidth": 1.1, "alpha": 0.75}
            axes.plot(values.clamp_min(1e-8), label=f"f{'₁₂'[k]}" if number == 0 else None, **style)
    axes.set_yscale("log")
    return axes


def draw(toy: Toy, paths: Mapping[str, Sequence[Tensor]], objectives: bool) -> Figure:
    """A panel per aggregator: its paths, or the objectives along them.

    Args:
        toy: the problem.
        paths: name to one path per start.
        objectives: which of the two.
    """
    rows = math.ceil(len(paths) / COLUMNS)
    paths_of = f"{toy.steps} steps from {len(toy.starts)} starts, circle to square"
    title = f"{toy.title}; {'objectives over steps' if objectives else paths_of}"
    figure = plots.new_figure(2.7 * rows + 0.6, title)
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, (name, of) in zip(grid, paths.items(), strict=False):
        (draw_objectives if objectives else draw_paths)(axes, toy, of)
        axes.set_title(name, fontsize=10)
        axes.tick_params(labelsize=8)
    for k, axes in enumerate(grid):
        axes.set_visible(k < len(paths))
        axes.tick_params(labelbottom=k + COLUMNS >= len(paths))
    figure.supxlabel("step" if objectives else "first parameter", fontsize=10)
    figure.supylabel("objective" if objectives else "second parameter", fontsize=10)
    if objectives:
        plain_decades(grid[0].yaxis)
        plots.legend_beside(figure)
    return figure


def save(key: str, paths: Mapping[str, Sequence[Tensor]], objectives: bool, folder: Path) -> Path:
    """A drawing as a PNG file, named after the problem and what is drawn; returns it."""
    name = f"{key}-{'objectives' if objectives else 'paths'}.png"
    return plots.save(draw(TOYS[key], paths, objectives), folder / name)
