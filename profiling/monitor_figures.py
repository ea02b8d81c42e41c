"""Plots of what a `GramMonitor` saw. Each takes an `Axes` and returns it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gramjd.extras import require
from gramjd.profiling.figure_style import BLUE, ORANGE, VERMILION, bare
from gramjd.profiling.figures import figure_of
from gramjd.profiling.monitor import GramMonitor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_cosines(axes: Axes, monitor: GramMonitor) -> Axes:
    """Heat map of the last step's pairwise cosines: red against each other, blue together."""
    C = monitor.cosines()
    image = axes.imshow(C.tolist(), cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="cosine", fraction=0.046, pad=0.03)
    axes.set_title(f"cosines of the gradients, step {monitor.steps[-1]}", fontsize=10)
    axes.set_xlabel("loss")
    axes.set_ylabel("loss")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(require("matplotlib.ticker", "profile").MaxNLocator(integer=True))
    return axes


def draw_weights(axes: Axes, monitor: GramMonitor) -> Axes:
    """Weights over the steps: lines for up to eight losses, else the median and where half and all of them lie."""
    rows = monitor.weights()
    names = monitor.latest_names() or [f"loss {k}" for k in range(len(rows[-1]))]
    if max(len(row) for row in rows) <= 8 and len({len(row) for row in rows}) == 1:
        for loss, line in enumerate(zip(*rows, strict=True)):
            axes.plot(monitor.steps, line, lw=1.4, label=names[loss])
    else:
        ranked = [sorted(row) for row in rows]

        def at(share: float) -> list[float]:
            return [row[round(share * (len(row) - 1))] for row in ranked]

        axes.fill_between(monitor.steps, at(0.0), at(1.0), color=BLUE, alpha=0.15, lw=0, label="all weights")
        axes.fill_between(monitor.steps, at(0.25), at(0.75), color=BLUE, alpha=0.35, lw=0, label="middle half")
        axes.plot(monitor.steps, at(0.5), color=BLUE, lw=1.6, label="median")
    positive = [weight for row in rows for weight in row if weight > 0]
    if positive and max(positive) > 100 * sorted(positive)[len(positive) // 2]:
        axes.set_yscale("log")  # a loss that is nearly learnt has a short gradient, and may get a huge weight
    axes.set_ylabel("weight")
    return _over_steps(axes)


def draw_conflict(axes: Axes, monitor: GramMonitor) -> Axes:
    """Share of conflicting pairs, how deep they conflict, and the cosine of the update to the mean, over the steps."""
    history = monitor.history()
    lines = {
        "conflicting_pairs": ("conflicting pairs (share)", VERMILION),
        "conflict_depth": ("depth of conflict (mean of -cosine)", ORANGE),
        "cosine_to_mean": ("cosine of update to mean", BLUE),
    }
    for name, (label, colour) in lines.items():
        axes.plot(monitor.steps, history[name], color=colour, lw=1.6, label=label)
    axes.set_ylim(min(0, *history["cosine_to_mean"]) - 0.02, 1.04)
    return _over_steps(axes, columns=1)


def save_monitor(monitor: GramMonitor, path: Path | str) -> Path:
    """The three plots side by side, in the format of the path's ending.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: the monitor has seen no step.
    """
    figure = figure_of(13, 3.9)
    figure.set_layout_engine("constrained", wspace=0.06)  # the label of the colours, and that of the next axis
    axes = figure.subplots(1, 3, width_ratios=(1, 1.15, 1.15))
    for draw, place in zip((draw_cosines, draw_weights, draw_conflict), axes, strict=True):
        draw(place, monitor)
    figure.savefig(path, dpi=150)
    return Path(path)


def _over_steps(axes: Axes, columns: int = 2) -> Axes:
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    bare(axes)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)
    return axes
