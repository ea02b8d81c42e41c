"""Plots of a profile. Drawing functions take an `Axes` and return it; `save_all` writes the ones that a profile has.

A figure is made without pyplot: no window, no backend to choose, no state left behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gramjd.extras import require
from gramjd.profiling.figure_style import BLUE, GREEN, GREY, INK, ORANGE, PINK, STEEL, VERMILION, bare, plain_decades
from gramjd.profiling.marks import PHASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gramjd.profiling.step import Profile

PHASE_COLOURS = dict(zip(PHASES, (STEEL, BLUE, ORANGE, GREEN), strict=True))
METHOD_COLOURS = {
    "plain": INK,
    "gramjd": BLUE,
    "gramjd reuse": GREEN,
    "jacobian": ORANGE,
    "torchjd autogram": VERMILION,
    "torchjd autojac": PINK,
}
MARKERS = dict(zip(METHOD_COLOURS, "osDv^P", strict=True))
Results = Mapping[str, Mapping[str, Any]]
QUANTITIES = {
    "time": ("time of a step, ms", lambda result: result["milliseconds"]["median"]),
    "memory": ("peak memory of a step, MB", lambda result: result["peak_bytes"] / 1e6),
}


def draw_times(axes: Axes, methods: Results) -> Axes:
    """A bar a method, divided by phase; its ratio to plain training at the end.

    Args:
        axes: where to draw.
        methods: name to result, as in `Profile.runs[...]["methods"]`.
    """
    names = list(methods)
    longest = max(sum(r["phases"].values()) for r in methods.values() if "refused" not in r)
    for place, name in enumerate(names):
        result = methods[name]
        left = 0.0
        if "refused" in result:
            axes.text(0.01 * longest, place, _wrapped(result["refused"]), va="center", fontsize=8, color=GREY)
            continue
        for phase, spent in result["phases"].items():
            axes.barh(place, spent, left=left, color=PHASE_COLOURS[phase], height=0.62, edgecolor="white", lw=0.6)
            left += spent
        axes.text(left + 0.012 * longest, place, _times_over(result["ratio"]["median"]), va="center", fontsize=9)
    seen = [phase for phase in PHASES if any(phase in r.get("phases", ()) for r in methods.values())]
    patches = require("matplotlib.patches", "profile")
    handles = [patches.Patch(color=PHASE_COLOURS[phase], label=phase) for phase in seen]
    axes.legend(handles=handles, frameon=False, ncols=len(seen), loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1.14 * longest)
    axes.set_xlabel("time of a step, ms (its ratio to plain training at the end of a bar)")
    return bare(axes)


def draw_timeline(axes: Axes, result: Mapping[str, Any], name: str, ceiling: float | None = None) -> Axes:
    """Memory over one step, its phases shaded. The time is that under the profiler, which slows a step down.

    Args:
        axes: where to draw.
        result: of one method, with its `timeline`.
        name: the method's.
        ceiling: upper end of the axis in MB, to share it between methods.
    """
    levels, marks = result["timeline"]["levels"], result["timeline"]["marks"]
    end = max(levels[-1][0], marks[-1][0])
    xs = [0.0, *(1e3 * t for t, _ in levels), 1e3 * end]
    ys = [0.0, *(level / 1e6 for _, level in levels), levels[-1][1] / 1e6]
    top = ceiling or 1.2 * max(ys)
    axes.step(xs, ys, where="post", color=INK, lw=1.1)
    for (start, phase), (stop, _) in pairwise(marks):
        axes.axvspan(1e3 * start, 1e3 * stop, color=PHASE_COLOURS[phase], alpha=0.22, lw=0)
        if stop - start > 0.09 * end:
            axes.text(500 * (start + stop), 0.97 * top, phase, ha="center", va="top", fontsize=8, color=INK)
    axes.set_xlim(0, 1e3 * end)
    axes.set_ylim(min(0, *ys), top)
    axes.set_title(f"{name}: peak {result['peak_bytes'] / 1e6:.1f} MB", fontsize=10, loc="left")
    return bare(axes)


def draw_sweep(axes: Axes, runs: Sequence[Mapping[str, Any]], quantity: str) -> Axes:
    """Time or memory of every method against m, both axes logarithmic. Where a line stops, the method refused.

    Args:
        axes: where to draw.
        runs: as in `Profile.runs`.
        quantity: "time" or "memory".
    """
    label, value = QUANTITIES[quantity]
    for name in dict.fromkeys(name for run in runs for name in run["methods"]):
        points = [(run["m"], run["methods"].get(name, {"refused": ""})) for run in runs]
        points = [(m, value(result)) for m, result in points if "refused" not in result]
        if points:
            axes.plot(*zip(*points, strict=True), color=METHOD_COLOURS[name], marker=MARKERS[name], ms=4.5, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([run["m"] for run in runs], [str(run["m"]) for run in runs])
    axes.xaxis.set_minor_locator(require("matplotlib.ticker", "profile").NullLocator())
    plain_decades(axes.yaxis)
    axes.set_xlabel("number of losses m")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    return bare(axes)


def figure_of(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure: Figure = require("matplotlib.figure", "profile").Figure(figsize=(width, height), layout="constrained")
    return figure


def times(run: Mapping[str, Any]) -> Figure:
    """`draw_times` on a figure of its own."""
    figure = figure_of(8, 1.3 + 0.42 * len(run["methods"]))
    draw_times(figure.subplots(), run["methods"])
    return figure


def timelines(run: Mapping[str, Any]) -> Figure:
    """`draw_timeline` of every method that ran, above each other, with one scale of memory for those of a size."""
    ran = {name: result for name, result in run["methods"].items() if "refused" not in result}
    figure = figure_of(8, 0.4 + 1.55 * len(ran))
    for axes, (name, result) in zip(figure.subplots(len(ran), squeeze=False)[:, 0], ran.items(), strict=True):
        draw_timeline(axes, result, name)
        axes.set_ylabel("MB")
    axes.set_xlabel("ms into the step, under the profiler")
    return figure


def sweep(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Memory and time against m, side by side."""
    figure = figure_of(9.5, 3.9)
    left, right = figure.subplots(1, 2)
    draw_sweep(left, runs, "memory")
    draw_sweep(right, runs, "time")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=len(labels), fontsize=9)
    return figure


def save_all(profile: Profile, folder: Path, kind: str = "png") -> list[Path]:
    """Write the figures of a profile to a folder; returns their paths.

    Args:
        profile: what `profile_step` returned.
        folder: made if it is not there.
        kind: png, svg or pdf.
    """
    last = profile.runs[-1]
    made: dict[str, Figure] = {}
    if any("refused" not in result for result in last["methods"].values()):
        made = {"times": times(last), "timelines": timelines(last)}
    if len(profile.runs) > 1:
        made["sweep"] = sweep(profile.runs)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in made.items():
        figure.savefig(folder / f"{name}.{kind}", dpi=150)
    return [folder / f"{name}.{kind}" for name in made]


def _wrapped(text: str) -> str:
    return text if len(text) < 80 else text[:77] + "..."


def _times_over(ratio: float) -> str:
    return f"{ratio:.2f} x" if ratio < 10 else f"{ratio:.0f} x"
