"""The look of every figure: colours that the colour-blind tell apart, no frame, ticks that are plain numbers.

The colours are those of Okabe and Ito. Where there are more lines than colours, dashes tell them apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gramjd.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
ORANGE, PINK, SKY = "#e69f00", "#cc79a7", "#56b4e9"
INK, GREY, STEEL = "#444444", "#777777", "#7f8c9a"  # what is compared with; notes; a phase that all have
CYCLE = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY)
MOST = 4  # decades of an axis whose ticks are written out


def bare(axes: Axes) -> Axes:
    """Without the frame's upper and right side."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def clean(axes: Axes) -> Axes:
    """A light grid, and no frame above and to the right."""
    axes.grid(alpha=0.25)
    return bare(axes)


def plain_decades(axis: Axis, subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """Plain numbers at `subs` of each decade of a logarithmic axis; past `MOST` decades powers of ten.

    Call it when all is drawn, as the limits of the axis decide.
    """
    low, high = sorted(axis.get_view_interval())
    if high > low * 10**MOST:
        return
    ticker = require("matplotlib.ticker", "profile")
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
