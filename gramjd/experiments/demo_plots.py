"""Curves of the demo. Drawing functions take an `Axes` and return it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gramjd.experiments import plots
from gramjd.experiments.data.images import TRAIN_SIZE
from gramjd.experiments.demo_report import diverged
from gramjd.experiments.training import Run
from gramjd.profiling.figure_style import BLUE, GREY, VERMILION, clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, VERMILION)  # of the baseline, of Jacobian descent
ABOVE: dict[str, Any] = {"frameon": False, "loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
Milliseconds = Mapping[tuple[str, str], float]
LABEL_GAP = 0.045  # of the height of the axes, per label


def draw(runs: Sequence[Run], best: Sequence[Run], batch: int, milliseconds: Milliseconds | None = None) -> Figure:
    """Loss above, cosine and conflicts below, a column per network.

    Args:
        runs: all runs.
        best: one run per network and method.
        batch: images per step, for the title.
        milliseconds: of a step, by network and method, to be said beside the curves.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    title = f"One objective per image: {TRAIN_SIZE} digits, {batch} per step. Thin: the other learning rates"
    figure = plots.new_figure(7.5, title)
    colours = dict(zip(dict.fromkeys(run.method for run in runs), COLOURS, strict=True))
    of = {
        network: [run for run in runs if run.network == network] for network in dict.fromkeys(r.network for r in runs)
    }
    grid = figure.subplots(2, len(of), sharex=True, sharey="row", squeeze=False)
    for (upper, lower), (network, group) in zip(grid.T, of.items(), strict=True):
        draw_loss(clean(upper), group, best, colours, milliseconds).set_title(network.upper(), pad=36)
        draw_signals(clean(lower), [run for run in best if run.network == network], colours)
        lower.xaxis.get_major_locator().set_params(integer=True)
    for axes, group in zip(grid[0], of.values(), strict=True):
        label_ends(axes, group, best, colours)
    return figure


def draw_loss(
    axes: Axes,
    runs: Sequence[Run],
    best: Sequence[Run],
    colours: Mapping[str, str],
    milliseconds: Milliseconds | None = None,
) -> Axes:
    """Training loss after every epoch: the best rate of each method in full, its others thin; the diverged are named.

    Args:
        axes: where to draw.
        runs: all runs of one network.
        best: those to bring out.
        colours: of each method, here and below.
        milliseconds: as in `draw`.
    """
    shown = _converged(runs, colours)
    for run in shown:
        style: dict[str, Any] = (
            {"linewidth": 2.4, "zorder": 3} if run in best else {"linewidth": 0.9, "alpha": 0.4, "zorder": 2}
        )
        spent = (milliseconds or {}).get((run.network, run.method))
        time = f", {spent:.3g} ms per step" if spent else ""
        label = f"{run.method}, rate {run.rate:g}: held out {100 * run.accuracy:.1f} %{time}" if run in best else None
        axes.plot(range(len(run.loss)), run.loss, color=colours[run.method], label=label, **style)
    lost = diverged(runs, lambda run: run.method)
    if lost:
        axes.text(0.02, 0.03, f"diverged: {lost}", transform=axes.transAxes, fontsize=8, color=GREY)
    plots.loss_axis(axes)
    if any(run in best for run in shown):
        axes.legend(fontsize=9, **ABOVE)
    return axes


def label_ends(axes: Axes, runs: Sequence[Run], best: Sequence[Run], colours: Mapping[str, str]) -> Axes:
    """The rate beside the end of each curve, with a thin line to the end where the label had to move.

    Call it when all curves are drawn: the room that a label needs depends on the limits of the axes. The arguments are
    those of `draw_loss`.
    """
    shown = _converged(runs, colours)
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    heights = spread_apart([math.log10(run.loss[-1]) for run in shown], LABEL_GAP * (high - low))
    for run, height in zip(shown, heights, strict=True):
        axes.annotate(
            f"{run.rate:g}",
            xy=(len(run.loss) - 1, run.loss[-1]),
            xytext=(1.05, (height - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            fontsize=7.5,
            color=colours[run.method],
            weight="bold" if run in best else "normal",
            arrowprops={"arrowstyle": "-", "color": colours[run.method], "lw": 0.6, "alpha": 0.6, "shrinkA": 1},
            annotation_clip=False,
        )
    return axes


def draw_signals(axes: Axes, best: Sequence[Run], colours: Mapping[str, str]) -> Axes:
    """Cosine of each update to the mean gradient (lines) and share of conflicting pairs (dashed), by epoch.

    The cosine of SGD is one throughout and is left out. `best` holds one run per method of one network.
    """
    for run in (run for run in best if run.cosine):
        epochs = plots.middles(run.cosine)
        style: dict[str, Any] = {"color": colours[run.method], "marker": "o" if len(epochs) == 1 else None}
        if any(abs(cosine - 1) > 1e-6 for cosine in run.cosine):  # SGD's update is the mean gradient itself
            axes.plot(epochs, run.cosine, linewidth=2.4, label=f"{run.method}: cosine to mean", **style)
        style |= {"linewidth": 1.3, "ls": (0, (4, 2)), "label": f"{run.method}: conflicting pairs"}
        axes.plot(epochs, run.conflicts, **style)
    axes.set(ylim=(0, 1.04), xlabel="epoch", ylabel="cosine; share of pairs")
    if any(run.cosine for run in best):
        axes.legend(fontsize=8, ncols=2, **ABOVE)
    return axes


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move numbers until neighbours are at least `gap` apart, each group of them around the middle that it had.

    >>> spread_apart([0.0, 1.0, 0.0], gap=0.5)
    [-0.25, 1.0, 0.25]
    """
    order = sorted(range(len(heights)), key=lambda k: heights[k])
    groups: list[list[int]] = []
    moved = list(heights)
    for k in order:
        groups.append([k])
        while True:
            last = groups[-1]
            middle = sum(heights[i] for i in last) / len(last)
            for place, i in enumerate(last):
                moved[i] = middle + (place - (len(last) - 1) / 2) * gap
            if len(groups) < 2 or moved[groups[-2][-1]] + gap <= moved[last[0]] + 1e-12:
                break
            groups[-2:] = [groups[-2] + last]
    return moved


def _converged(runs: Sequence[Run], colours: Mapping[str, str]) -> list[Run]:
    return [run for method in colours for run in runs if run.method == method and not run.diverged]
