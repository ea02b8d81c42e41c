"""Curves of the digits demo. Drawing functions take an `Axes` and return it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gramjd.demos.extras import require
from gramjd.demos.training import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#4a6fa5", "#c8553d")  # baseline blue, Jacobian descent red: told apart by most colour-blind eyes too

LABEL_GAP = 0.13  # decades of loss that a label takes up


def draw_loss(axes: Axes, runs: Sequence[Run], best: Sequence[Run], colours: Mapping[str, str]) -> Axes:
    """Training loss after every epoch: the best rate of each method in full, its other rates thin, diverged ones not.

    Args:
        axes: where to draw.
        runs: all runs of one network.
        best: those to bring out.
        colours: of each method.
    """
    shown = [run for method in colours for run in runs if run.method == method and not run.diverged]
    for run in shown:
        style: dict[str, Any] = (
            {"linewidth": 2.4, "zorder": 3} if run in best else {"linewidth": 0.9, "alpha": 0.4, "zorder": 2}
        )
        label = f"{run.method}, its best rate {run.rate:g}" if run in best else None
        axes.plot(range(len(run.loss)), run.loss, color=colours[run.method], label=label, **style)
    for run, height in zip(shown, spread_apart([math.log10(run.loss[-1]) for run in shown], LABEL_GAP), strict=True):
        axes.annotate(
            f"{run.rate:g}",
            (len(run.loss) - 1, 10**height),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=colours[run.method],
            weight="bold" if run in best else "normal",
        )
    ticker = require("matplotlib.ticker", "demo")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.set_ylabel("training loss (log scale)")
    if any(run in best for run in shown):
        axes.legend(frameon=False, loc="upper right")
    return axes


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move numbers up until neighbours are at least `gap` apart, so that labels do not overlap.

    >>> spread_apart([0.0, 1.0, 0.0], gap=0.1)
    [0.0, 1.0, 0.1]
    """
    moved = list(heights)
    order = sorted(range(len(heights)), key=lambda k: heights[k])
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    return moved


def draw_signals(axes: Axes, best: Sequence[Run], colours: Mapping[str, str]) -> Axes:
    """Cosine of each update to the mean gradient (lines) and share of conflicting pairs (dashed), by epoch.

    Args:
        axes: where to draw.
        best: one run per method of one network.
        colours: of each method.
    """
    for run in (run for run in best if run.cosine):
        epochs = [epoch + 0.5 for epoch in range(len(run.cosine))]  # an average over an epoch belongs to its middle
        colour = colours[run.method]
        axes.plot(epochs, run.cosine, color=colour, linewidth=2.4, label=f"{run.method}: cosine to mean")
        axes.plot(
            epochs, run.conflicts, color=colour, linewidth=1.3, ls=(0, (4, 2)), label=f"{run.method}: conflicting pairs"
        )
    axes.set_ylim(0, 1.04)
    axes.set_xlabel("epoch")
    axes.set_ylabel("cosine; share of pairs")
    if any(run.cosine for run in best):
        axes.legend(frameon=False, fontsize=8, loc="lower left", ncols=2)
    return axes


def draw(runs: Sequence[Run], best: Sequence[Run]) -> Figure:
    """Loss above, cosine and conflicts below, a column per network.

    Args:
        runs: all runs.
        best: one run per network and method.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    # A Figure of its own, not pyplot: no window, no backend to choose, no state left behind.
    figure: Figure = require("matplotlib.figure", "demo").Figure(figsize=(11, 7.5), layout="constrained")
    networks = list(dict.fromkeys(run.network for run in runs))
    colours = dict(zip(dict.fromkeys(run.method for run in runs), COLOURS, strict=True))
    grid = figure.subplots(2, len(networks), sharex=True, sharey="row", squeeze=False)
    for column, network in zip(grid.T, networks, strict=True):
        chosen = [run for run in best if run.network == network]
        draw_loss(column[0], [run for run in runs if run.network == network], chosen, colours)
        draw_signals(column[1], chosen, colours)
        column[0].set_title(network.upper())
        column[1].xaxis.get_major_locator().set_params(integer=True)
        for axes in column:
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("One objective per image: 1024 digits, batch 32. Thin: the other learning rates", fontsize=12)
    return figure


def save_figure(runs: Sequence[Run], best: Sequence[Run], path: Path) -> Path:
    """Write `draw(runs, best)` to the PNG `path`; returns `path`."""
    draw(runs, best).savefig(path, dpi=130)
    return path
