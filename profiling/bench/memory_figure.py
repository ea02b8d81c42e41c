"""The figure of peak memory against the number of losses, from a result of the benchmark of memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gramjd.extras import require
from gramjd.profiling.figure_style import CYCLE, INK, bare
from gramjd.profiling.figures import figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {"gramjd": 'update="backward" (dotted: predicted)', "gramjd reuse": 'update="reuse"'}
FLAT = 3.0  # a model that ever takes more times the memory of plain training has another range of the axis


def draw_memory(axes: Axes, models: Mapping[str, Mapping[str, Any]], kind: str, colours: Mapping[str, str]) -> Axes:
    """Peak memory of a step over the plain step's, against m, a line per model; dotted what was predicted.

    Args:
        axes: where to draw.
        models: some of those in a result of the benchmark of memory.
        kind: "gramjd" or "gramjd reuse".
        colours: of each model.
    """
    for name, model in models.items():
        ms = [point["m"] for point in model["points"]]
        ratios = [point[kind] / point["plain"] for point in model["points"]]
        axes.plot(ms, ratios, color=colours[name], marker="o", ms=4, lw=1.5, label=model["title"])
        if kind == "gramjd":
            told = [point["predicted"] / point["plain"] for point in model["points"]]
            axes.plot(ms, told, color=colours[name], lw=1.2, ls=":", zorder=1)
    axes.axhline(1, color=INK, lw=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ms, [str(m) for m in ms])
    axes.xaxis.set_minor_locator(require("matplotlib.ticker", "profile").NullLocator())
    axes.grid(alpha=0.25)
    return bare(axes)


def memory(results: Mapping[str, Any]) -> Figure:
    """Both ways to update side by side; the models whose memory grows with m above, the others below."""
    models = results["models"]
    colours = dict(zip(models, CYCLE, strict=False))
    growing = {name for name, model in models.items() if _largest(model) > FLAT}
    parts = [{name: model for name, model in models.items() if (name in growing) == grows} for grows in (True, False)]
    parts = [part for part in parts if part]
    figure = figure_of(10, 2.2 + 2.6 * len(parts))
    grid = figure.subplots(len(parts), 2, sharex=True, sharey="row", squeeze=False)
    for row, part in zip(grid, parts, strict=True):
        for axes, kind in zip(row, KINDS, strict=True):
            draw_memory(axes, part, kind, colours)
        row[0].set_ylim(bottom=0 if part.keys() <= growing else 0.9)  # when all is drawn: the panels share it
    for axes, kind in zip(grid[0], KINDS, strict=True):
        axes.set_title(KINDS[kind], fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("number of losses m")
    figure.supylabel("peak memory of a step over plain training", fontsize=10)
    handles = [handle for row in grid for handle in row[0].get_legend_handles_labels()[0]]
    figure.legend(handles=handles, frameon=False, loc="outside upper center", ncols=3, fontsize=8.5)
    return figure


def _largest(model: Mapping[str, Any]) -> float:
    return max(float(point[kind] / point["plain"]) for point in model["points"] for kind in KINDS)
