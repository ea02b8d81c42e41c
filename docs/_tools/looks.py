"""What the drawings share: colours, cells, arrows and letters.

Grounds are transparent, so every colour is one that can be told from white and from the dark ground of the site;
`check` refuses others. Letters stay letters. Blue, vermilion and green are those of Okabe and Ito, which colour-blind
people can tell apart; the blue is a little lighter, for the dark ground.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

BLUE, VERMILION, GREEN = "#2382c4", "#D55E00", "#009E73"
INK, FAINT = "#808080", "#8a8a8a"
GROUNDS = ("#ffffff", "#1e2129")
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "gramjd", "font.family": "sans-serif", "font.size": 13}


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one: str, other: str) -> float:
    """From 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def canvas(width: float, height: float, across: float, up: float) -> tuple[Figure, Any]:
    """A figure in inches, and axes that nobody sees, from (0, 0) to (across, up)."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, across), ylim=(0, up), aspect="equal")
    axes.axis("off")
    return figure, axes


def cells(axes: Any, x: float, y: float, rows: int, columns: int, colour: Callable[[int, int], str | None]) -> None:
    """A grid of unit squares whose top left corner is (x, y), filled where there is a colour."""
    for i in range(rows):
        for j in range(columns):
            fill = colour(i, j)
            corner = (x + j, y - i - 1)
            axes.add_patch(Rectangle(corner, 1, 1, fc=fill or "none", alpha=0.85 if fill else 1, ec="none"))
            axes.add_patch(Rectangle(corner, 1, 1, fc="none", ec=FAINT, lw=0.8))


def say(axes: Any, x: float, y: float, text: str, colour: str = INK, **options: Any) -> None:
    """Letters, centred unless told otherwise."""
    axes.text(x, y, text, color=colour, **{"ha": "center", "va": "center"} | options)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str = INK, width: float = 2) -> None:
    """From one point to another."""
    style = {"arrowstyle": "-|>", "mutation_scale": 16, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=colour, lw=width, **style))


def check() -> None:
    """Refuse colours that are too weak on one of the grounds."""
    weak = [c for c in (BLUE, VERMILION, GREEN, INK, FAINT) for ground in GROUNDS if contrast(c, ground) < 3]
    if weak:
        raise SystemExit(f"too weak on one of the grounds: {weak}")
