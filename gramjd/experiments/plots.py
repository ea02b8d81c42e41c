"""What the plots of the experiments share: figures without a window, and the look of their axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gramjd.extras import require
from gramjd.profiling.figure_style import plain_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 11.0  # inches


def new_figure(height: float, title: str) -> Figure:
    """A figure of its own, not of pyplot: no window, no backend to choose, no state left behind.

    Args:
        height: in inches.
        title: above all axes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure: Figure = require("matplotlib.figure", "demo").Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def loss_axis(axes: Axes) -> Axes:
    """The vertical axis of a training loss: logarithmic, with ticks that are written out."""
    axes.set_yscale("log")
    plain_decades(axes.yaxis)
    axes.set_ylabel("training loss (log scale)")
    return axes


def middles(values: Sequence[object]) -> list[float]:
    """Where averages over epochs belong: the middle of each epoch.

    >>> middles([0.9, 0.8])
    [0.5, 1.5]
    """
    return [epoch + 0.5 for epoch in range(len(values))]


def legend_beside(figure: Figure) -> None:
    """One legend to the right of all axes, with what is drawn in the first of them."""
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG file, making its folder; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path
