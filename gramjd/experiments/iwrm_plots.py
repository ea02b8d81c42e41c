"""Curves of the image experiments: training loss, and cosine to the mean gradient, with standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gramjd.experiments import plots
from gramjd.experiments.aggregators import ENTRIES
from gramjd.experiments.data.sets import DATA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_band(axes: Axes, x: Sequence[float], pairs: Sequence[Sequence[float | None]], label: str) -> Axes:
    """A mean as a line, and one standard error to both sides as a band.

    Args:
        axes: where to draw.
        x: the horizontal positions.
        pairs: `[mean, error]` at each; a mean that is missing leaves a gap.
        label: a name of Table 1, which gives the colour.
    """
    colour = ENTRIES[label].colour
    nan = float("nan")
    mean = [nan if m is None else m for m, _ in pairs]
    error = [0.0 if e is None else e for _, e in pairs]
    axes.plot(x, mean, color=colour, label=label, linewidth=2.4 if label == "UPGrad" else 1.5)
    low, high = ([m + sign * e for m, e in zip(mean, error, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    return axes


def draw(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss on the left, cosine on the right; each aggregator at the best rate of its search.

    Args:
        entries: from `iwrm_report.summarise`, of one set, optimiser and batch size.
    """
    first = entries[0]
    seeds = max(len(entry["best"]["seeds"]) for entry in entries)
    figure = plots.new_figure(
        4.6,
        f"{DATA[first['data']].title}, one objective per image, batch {first['batch']}, {first['optimizer'].upper()}; "
        f"each at its best rate; mean and standard error over up to {seeds} seeds that converged",
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
        plots.clean(axes).set_xlabel("epoch")
    plots.legend_beside(figure)
    return figure
