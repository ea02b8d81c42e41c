"""Curves of the digits demo. Drawing functions take an `Axes` and return it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gramjd.demos.extras import require
from gramjd.demos.training import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#5a6b7b", "#d1495b")  # the baseline grey-blue, Jacobian descent red: apart in greyscale too


def draw_loss(axes: Axes, runs: Sequence[Run], best: Sequence[Run], colours: dict[str, str]) -> Axes:
    """Training loss after every epoch: the best rate of each method in full, its other rates thin.

    Args:
        axes: where to draw.
        runs: all runs of one network.
        best: those to bring out.
        colours: of each method.
    """
    for run in runs:
        if run.diverged:
            continue
        chosen = run in best
        axes.plot(
            range(len(run.loss)),
            run.loss,
            color=colours[run.method],
            linewidth=2.4 if chosen else 0.9,
            alpha=1.0 if chosen else 0.35,
            label=f"{run.method}, best rate ({run.rate:g})" if chosen else None,
            zorder=3 if chosen else 2,
        )
        if not chosen:
            axes.annotate(
                f"{run.rate:g}",
                (len(run.loss) - 1, run.loss[-1]),
                (3, 0),
                textcoords="offset points",
                color=colours[run.method],
                fontsize=7,
                alpha=0.7,
                va="center",
            )
    axes.set_yscale("log")
    axes.set_ylabel("training loss")
    axes.legend(frameon=False)
    return axes


def draw_signals(axes: Axes, best: Sequence[Run], colours: dict[str, str]) -> Axes:
    """Cosine of each update to the mean gradient (lines) and share of conflicting pairs (dotted), by epoch.

    Args:
        axes: where to draw.
        best: one run per method of one network.
        colours: of each method.
    """
    for run in best:
        epochs = [e + 0.5 for e in range(len(run.cosine))]  # averages over an epoch belong to its middle
        axes.plot(epochs, run.cosine, color=colours[run.method], linewidth=2.4, label=f"{run.method}: cosine to mean")
        axes.plot(
            epochs,
            run.conflicts,
            color=colours[run.method],
            linewidth=1.4,
            linestyle=":",
            label=f"{run.method}: conflicting pairs",
        )
    axes.set_ylim(0, 1.04)
    axes.set_xlabel("epoch")
    axes.set_ylabel("cosine, share of pairs")
    axes.legend(frameon=False, fontsize=8)
    return axes


def save_figure(runs: Sequence[Run], best: Sequence[Run], path: Path) -> Path:
    """Loss above, cosine and conflicts below, a column per network.

    Args:
        runs: all runs.
        best: one run per network and method.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    # A Figure of its own, not pyplot: no window, no backend to choose, no state left behind.
    figure = require("matplotlib.figure", "demo").Figure(figsize=(11, 7.5), layout="constrained")
    networks = list(dict.fromkeys(run.network for run in runs))
    colours = dict(zip(dict.fromkeys(run.method for run in runs), COLOURS, strict=True))
    grid = figure.subplots(2, len(networks), sharex=True, sharey="row", squeeze=False)
    for column, network in zip(grid.T, networks, strict=True):
        chosen = [run for run in best if run.network == network]
        draw_loss(column[0], [run for run in runs if run.network == network], chosen, colours).set_title(
            network.upper()
        )
        draw_signals(column[1], chosen, colours)
        for axes in column:
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            axes.label_outer()
    rates = ", ".join(f"{rate:g}" for rate in sorted({run.rate for run in runs}))
    figure.suptitle(f"One objective per image, 1024 digits, batch 32; same weights, batches and rates ({rates})")
    figure.savefig(path, dpi=130)
    return path
