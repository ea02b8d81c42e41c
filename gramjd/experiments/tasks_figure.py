"""The figure of `gramjd paper tasks`: accuracy of one task against that of the other, a point per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gramjd.experiments import plots
from gramjd.experiments.aggregators import ENTRIES
from gramjd.experiments.tasks_methods import METHODS, SUM
from gramjd.experiments.tasks_report import TITLES
from gramjd.profiling.figure_style import BLUE, GREEN, GREY, INK, ORANGE, PINK, SKY, VERMILION, clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASKS = ("upper_left", "lower_right")
FAR = 12.0  # percentage points
SHAPES = {"-": "o", "--": "^", ":": "v"}  # an aggregator's, by its dash in other figures; squares are scalarisations
SQUARES = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, GREY)
AGGREGATED = [name for name in METHODS if name in ENTRIES and name != SUM]
SCALARS = [name for name in METHODS if name not in ENTRIES]
LOOKS: dict[str, dict[str, Any]] = {
    SUM: {"color": INK, "marker": "*", "ms": 13},
    **{
        name: {"color": colour, "marker": "s", "ms": 6, "mfc": "white"}
        for name, colour in zip(SCALARS, SQUARES, strict=True)
    },
    **{name: {"color": ENTRIES[name].colour, "marker": SHAPES[ENTRIES[name].dash], "ms": 6} for name in AGGREGATED},
}


def split(entries: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Entries that are drawn, and those of one form that would squeeze all others: `FAR` behind the best in a task."""
    found = [e for e in entries if e["best"] is not None and e["best"]["upper_left"][0] is not None]
    tops = {name: max((e["best"][name][0] for e in found), default=0.0) for name in TASKS}
    far = [e for e in found if any(tops[name] - e["best"][name][0] > FAR for name in TASKS)]
    return [e for e in found if e not in far], far


def draw_form(axes: Axes, entries: Sequence[Mapping[str, Any]]) -> Axes:
    """The points of one form, with one standard error to all sides; those far off are written into the title.

    Args:
        axes: where to draw.
        entries: from `tasks_report.summarise`, of one form; a search in which no rate converged has no point.
    """
    near, far = split(entries)
    for entry in near:
        (x, dx), (y, dy) = (entry["best"][name] for name in TASKS)
        look = LOOKS[entry["method"]]
        axes.errorbar(x, y, yerr=dy, xerr=dx, label=entry["method"], elinewidth=0.7, linestyle="none", **look)
    numbers = {e["method"]: ", ".join(f"{e['best'][name][0]:.1f}" for name in TASKS) for e in far}
    outside = ", ".join(f"{method} ({place})" for method, place in numbers.items())
    title = f"{TITLES[entries[0]['form']]}\n{f'outside: {outside}' if far else ' '}"
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("upper left digit right, % of held-out images")
    axes.set_ylabel("lower right digit right, %")
    return clean(axes)


def draw(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Both forms side by side, one legend to their right."""
    forms = list(dict.fromkeys(entry["form"] for entry in entries))
    figure = plots.new_figure(
        4.9, "Two overlaid digits, each method at its best rate: mean and standard error over seeds"
    )
    panels = figure.subplots(1, len(forms), squeeze=False)[0]
    for axes, form in zip(panels, forms, strict=True):
        draw_form(axes, [entry for entry in entries if entry["form"] == form])
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside right center", frameon=False, fontsize=9)
    return figure


def save(entries: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write `tasks.png`; returns its path."""
    return plots.save(draw(entries), folder / "tasks.png")
