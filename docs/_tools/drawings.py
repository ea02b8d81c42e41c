"""The drawings of the concepts, of the engine and of the aggregators: `python docs/_tools/drawings.py` writes them.

Those of the aggregators are in `updates.py`; `looks.py` has the colours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import updates
from looks import BLUE, FAINT, GREEN, INK, STYLE, VERMILION, arrow, canvas, cells, check, say
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

DOCS = Path(__file__).resolve().parents[1]


def gramian() -> Figure:
    """J, its transpose, and G with the entry of two rows marked."""
    figure, axes = canvas(7.6, 3.0, 30, 12)
    marked = {1: BLUE, 3: VERMILION}
    cells(axes, 1, 7, 4, 11, lambda i, _: marked.get(i))
    cells(axes, 14.3, 10.5, 11, 4, lambda _, j: marked.get(j))
    cells(axes, 22, 7, 4, 4, lambda i, j: GREEN if {i, j} == {1, 3} else None)
    say(axes, 13, 5, "\N{MULTIPLICATION SIGN}")
    say(axes, 20.1, 5, "=")
    say(axes, 6.5, 8, "J   [m, n]: one gradient per row")
    say(axes, 16.3, 11.1, "Jᵀ")
    say(axes, 24, 8, "G   [m, m]")
    say(axes, 26.4, 5.5, "G₁₃ = g₁ · g₃", GREEN, ha="left")
    say(axes, 0.5, 5.5, "g₁", BLUE, ha="right")
    say(axes, 0.5, 3.5, "g₃", VERMILION, ha="right")
    axes.set(xlim=(-1, 32), ylim=(-1, 12))
    return figure


def cone() -> Figure:
    """Two gradients, the cone that both agree with, the mean and UPGrad."""
    figure, axes = canvas(6.4, 4.2, 12, 8)
    J = np.array([[5.0, 0.4], [-2.0, 1.5]])
    origin = np.array([4.4, 1.4])
    edges = [normal(J[1], J[0]), normal(J[0], J[1])]
    axes.add_patch(Polygon([origin, *(origin + 5.6 * e for e in edges)], fc=GREEN, alpha=0.22, ec="none"))
    for e in edges:
        axes.plot(*zip(origin, origin + 5.6 * e, strict=True), color=GREEN, lw=1.2, ls="--")
    mean, update = J.mean(0), np.mean([onto_plane(J[0], J[1]), onto_plane(J[1], J[0])], axis=0)
    for vector, colour in ((J[0], BLUE), (J[1], BLUE), (1.6 * mean, VERMILION), (1.6 * update, GREEN)):
        arrow(axes, tuple(origin), tuple(origin + vector), colour, 2.6)
    say(axes, *(origin + J[0] + (0.45, 0.1)), "g₁", BLUE)
    say(axes, *(origin + J[1] + (-0.3, 0.35)), "g₂", BLUE)
    say(axes, *(origin + 1.6 * mean + (0.25, 0.25)), "mean", VERMILION, ha="left")
    say(axes, *(origin + 1.6 * update + (0.1, 0.4)), "UPGrad", GREEN)
    say(axes, 6.2, 7.4, "no loss objects: J y ≥ 0", GREEN)
    say(axes, 4.4, 0.6, "against g₂: the mean makes loss 2 worse", VERMILION, ha="left")
    return figure


def normal(off: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """The unit vector orthogonal to one vector, on the side of another."""
    found = np.array([-off[1], off[0]]) / np.linalg.norm(off)
    return found if found @ towards > 0 else -found


def onto_plane(vector: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The vector without what it has against the other."""
    return vector - min(0.0, vector @ other / (other @ other)) * other


def rows() -> Figure:
    """One row per loss, zero but on the diagonal, beside the one tensor that is left."""
    figure, axes = canvas(7.6, 3.4, 31, 13)
    m, wide = 5, 3
    shades = (BLUE, VERMILION, GREEN)
    cells(axes, 2.5, 9, m, m * wide, lambda i, j: shades[i % 3] if j // wide == i else None)
    for k in range(m):
        axes.add_patch(Rectangle((2.5 + k * wide, 4), wide, 5, fc="none", ec=INK, lw=1.6))
        say(axes, 4 + k * wide, 3.4, f"sample {k}", fontsize=11)
        say(axes, 2.2, 8.5 - k, f"loss {k}", ha="right", fontsize=11)
    say(axes, 10, 10.1, "m rows of the activation: m times its size")
    arrow(axes, (18.4, 6.5), (21.9, 6.5))
    say(axes, 20.1, 7.2, "fold", fontsize=11)
    cells(axes, 23, 9, m, wide, lambda i, _: shades[i % 3])
    say(axes, 24.5, 10.1, "one tensor, its size")
    say(axes, 26.3, 6.5, "batch\naxis", ha="left", fontsize=11)
    say(axes, 24.5, 3.4, "features", fontsize=11)
    say(axes, 10, 2.2, "empty: zero, as loss i does not depend on sample j", fontsize=11)
    axes.set(xlim=(-1, 30), ylim=(1.4, 11))
    figure.set_size_inches(7.6, 7.6 * 9.6 / 31)
    return figure


def factors() -> Figure:
    """(X X^T) * (C C^T) for a linear layer."""
    figure, axes = canvas(7.6, 3.3, 34, 14)
    m = 4
    pair = {(1, 2), (2, 1)}
    for y, wide, name, colour, what in ((12.5, 7, "X", BLUE, "inputs"), (6, 3, "C", VERMILION, "output gradients")):
        cells(axes, 1.5, y, m, wide, lambda i, _, c=colour: c if i in (1, 2) else None)
        say(axes, 0.7, y - 2, name, colour)
        say(axes, 1.5, y + 0.7, f"{what}, one row per sample", ha="left", fontsize=11)
        arrow(axes, (wide + 2.2, y - 2), (13.3, y - 2))
        cells(axes, 14, y, m, m, lambda i, j, c=colour: c if (i, j) in pair else None)
        say(axes, 16, y + 0.7, f"{name} {name}ᵀ", fontsize=11)
    say(axes, 16, 7.75, "\N{ASTERISK OPERATOR}", fontsize=16)
    arrow(axes, (18.8, 7.3), (22.6, 7.3))
    cells(axes, 23.5, 9.3, m, m, lambda i, j: GREEN if (i, j) in pair else None)
    say(axes, 25.5, 10.9, "the layer's share of G", fontsize=11)
    say(axes, 25.5, 4.4, "(x₁ · x₂) (c₁ · c₂)", GREEN)
    say(axes, 25.5, 2.7, "no gradient of the\nweight is formed", fontsize=11)
    axes.set(xlim=(-0.5, 32), ylim=(1.2, 14))
    return figure


def engine() -> Figure:
    """The one idea from left to right: rows fold, a layer keeps a product, the product gives a share of G."""
    figure, axes = canvas(8.4, 3.0, 42, 15)
    m, shades = 3, (BLUE, VERMILION, GREEN)
    cells(axes, 0, 9, m, 2 * m, lambda i, j: shades[i] if j // 2 == i else None)
    arrow(axes, (6.6, 7.5), (9.4, 7.5))
    say(axes, 8, 8.2, "fold", fontsize=11)
    cells(axes, 10, 9, m, 2, lambda i, _: shades[i])
    say(axes, 5.5, 10.2, "cotangents of m losses", fontsize=11)
    say(axes, 6, 4.6, "1  rows fold into\nthe batch axis", fontsize=12)
    arrow(axes, (12.7, 7.5), (15.5, 7.5))
    say(axes, 14.1, 8.2, "rule", fontsize=11)
    cells(axes, 16.3, 9, m, 2, lambda i, _: shades[i])
    say(axes, 19.6, 7.5, "\N{CIRCLED TIMES}", fontsize=15)
    cells(axes, 20.9, 9, m, 4, lambda i, _: shades[i])
    say(axes, 17.3, 10.2, "C", fontsize=11)
    say(axes, 22.9, 10.2, "X", fontsize=11)
    say(axes, 20.6, 4.6, "2  a parameter keeps\na factor: c xᵀ per loss", fontsize=12)
    arrow(axes, (25.7, 7.5), (28.5, 7.5))
    say(axes, 27.1, 8.2, "kernel", fontsize=11)
    cells(axes, 29.4, 9, m, m, lambda i, j: shades[i] if i == j else FAINT)
    say(axes, 30.9, 10.2, "CCᵀ \N{ASTERISK OPERATOR} XXᵀ", fontsize=11)
    say(axes, 33.6, 7.5, "+", fontsize=15)
    cells(axes, 34.9, 9, m, m, lambda i, j: FAINT)
    say(axes, 36.4, 10.2, "G", fontsize=11)
    say(axes, 33.6, 4.6, "3  shares add up\nto G", fontsize=12)
    axes.set(xlim=(-0.5, 38.5), ylim=(3.2, 11))
    figure.set_size_inches(8.4, 8.4 * 7.8 / 39)
    return figure


DRAWINGS: dict[str, Callable[[], Figure]] = {
    "concepts/gramian": gramian,
    "concepts/cone": cone,
    "concepts/rows": rows,
    "concepts/factors": factors,
    "concepts/engine": engine,
    "aggregators/cone": updates.cone,
    "aggregators/fair": updates.fair,
    "aggregators/surgery": updates.surgery,
    "aggregators/baselines": updates.baselines,
    "aggregators/robust": updates.robust,
    "aggregators/least-squares": updates.least_squares,
    "aggregators/adaptive": updates.adaptive,
    "aggregators/nested": updates.nested,
}


def main() -> None:
    """Write them all."""
    check()
    with matplotlib.rc_context(STYLE):
        for name, draw in DRAWINGS.items():
            options: dict[str, Any] = {"transparent": True, "metadata": {"Date": None, "Creator": None}}
            draw().savefig(DOCS / f"{name}.svg", **options)


if __name__ == "__main__":
    main()
