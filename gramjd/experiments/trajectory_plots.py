"""Plots of the toy problems: paths over contours, objectives over steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gramjd.experiments import plots
from gramjd.experiments.toys import TOYS, Toy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (plots.RED, plots.BLUE, "#2a9d8f", "#e9a03b", "#7b4fa3")  # one per start
OBJECTIVES = (plots.BLUE, plots.RED)
COLUMNS = 4
LEVELS = 9


def draw_paths(axes: Axes, toy: Toy, paths: Sequence[Tensor]) -> Axes:
    """Contours of both objectives, and the path from each start (circle) to its end (square).

    Args:
        axes: where to draw.
        toy: the problem.
        paths: points [steps + 1, 2], one path per start.
    """
    left, right, bottom, top = toy.window
    x, y = torch.linspace(left, right, 121), torch.linspace(bottom, top, 121)
    values = toy.objectives(torch.cartesian_prod(x, y).double()).view(121, 121, 2).permute(2, 1, 0)
    for value, colour in zip(values, OBJECTIVES, strict=True):
        # Evenly spaced in the root: a quadratic's contours are then evenly spaced too.
        levels = [(k / LEVELS) ** 2 * float(value.max()) for k in range(1, LEVELS)]
        axes.contour(x, y, value, levels=levels, colors=colour, linewidths=0.5, alpha=0.45)
    for points, colour in zip(paths, COLOURS, strict=False):
        axes.plot(*points.T, color=colour, linewidth=1.3)
        axes.plot(*points[0], "o", color=colour, markersize=4.5)
        axes.plot(*points[-1], "s", color=colour, markersize=4.5, markeredgecolor="black", markeredgewidth=0.6)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    return axes


def draw_objectives(axes: Axes, toy: Toy, paths: Sequence[Tensor]) -> Axes:
    """Both objectives along every path, over the steps: the first in blue, the second in red.

    Args:
        axes: where to draw.
        toy: the problem.
        paths: points [steps + 1, 2], one path per start.
    """
    for number, points in enumerate(paths):
        for k, (values, colour) in enumerate(zip(toy.objectives(points).T, OBJECTIVES, strict=True)):
            label = f"f{'₁₂'[k]}" if number == 0 else None
            axes.plot(values.clamp_min(1e-8), color=colour, linewidth=1.1, alpha=0.75, label=label)
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
    if objectives:
        grid[0].legend(frameon=False, fontsize=8)
    return figure


def save(paths: Mapping[str, Mapping[str, Sequence[Tensor]]], folder: Path) -> list[Path]:
    """Two PNG files per problem; returns them."""
    return [
        plots.save(draw(TOYS[key], of, objectives), folder / f"{key}-{'objectives' if objectives else 'paths'}.png")
        for key, of in paths.items()
        for objectives in (False, True)
    ]
