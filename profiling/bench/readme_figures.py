"""The figures of README.md and docs/benchmarks.md, made from committed results.

Each carries the hash of the result that it was made from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gramjd.extras import require
from gramjd.profiling.bench.memory_figure import memory
from gramjd.profiling.figure_style import BLUE, GREY, INK, VERMILION, bare, plain_decades
from gramjd.profiling.figures import figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = Path("docs/figures")
STAMP = re.compile(r"sha256 ([0-9a-f]{64})")
CONTENDER_COLOURS = {"gramjd": BLUE, "torchjd": VERMILION}
LIBRARIES = {"gramjd": "gramjd, UPGrad", "torchjd": "TorchJD (autogram), UPGrad"}


def draw_steps(axes: Axes, results: Mapping[str, Any]) -> Axes:
    """Time of a step over the plain step's: a point per contender and case, its quartiles as a bar.

    Args:
        axes: where to draw.
        results: of the benchmark of a step.
    """
    names = [name for name in next(iter(results["cases"].values()))["contenders"] if name != "plain"]
    for nr, name in enumerate(names):
        colour = CONTENDER_COLOURS[name.split()[0]]
        filled = colour if "UPGrad" in name else "white"
        points = [
            (place + (nr - (len(names) - 1) / 2) * 0.18, case["contenders"][name]["ratio"])
            for place, case in enumerate(results["cases"].values())
            if "refused" not in case["contenders"][name]
        ]
        ys, medians = [y for y, _ in points], [r["median"] for _, r in points]
        spans = [[r["median"] - r["low"] for _, r in points], [r["high"] - r["median"] for _, r in points]]
        marker = "s" if "reuse" in name else "o"
        axes.errorbar(medians, ys, xerr=spans, fmt=marker, color=colour, mfc=filled, ms=5, lw=1.1, label=name)
    for place, case in enumerate(results["cases"].values()):
        if _refused(case, "torchjd"):
            axes.text(2.4, place, "TorchJD: refused", va="center", fontsize=8, color=CONTENDER_COLOURS["torchjd"])
    axes.set_yticks(range(len(results["cases"])), [f"{c['title']}, m = {c['m']}" for c in results["cases"].values()])
    axes.invert_yaxis()
    _times_over_plain(axes)
    axes.set_xlabel("time of a step over plain training (median and quartiles)")
    axes.grid(alpha=0.25, axis="x", which="both")
    return bare(axes)


def steps(results: Mapping[str, Any]) -> Figure:
    """`draw_steps` on a figure of its own."""
    figure = figure_of(10, 1.2 + 0.42 * len(results["cases"]))
    handles, labels = draw_steps(figure.subplots(), results).get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=len(labels), fontsize=9)
    return figure


def _refused(case: Mapping[str, Any], library: str) -> bool:
    return any("refused" in outcome for name, outcome in case["contenders"].items() if name.startswith(library))


def _times_over_plain(axes: Axes) -> None:
    """A logarithmic axis of ratios to plain training, with plain numbers at 1, 2 and 5 of each decade."""
    axes.set_xscale("log")
    axes.axvline(1, color=INK, lw=0.8)
    plain_decades(axes.xaxis)


def draw_overview(
    axes: Axes, cases: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any], str], float]
) -> Axes:
    """One quantity of a step over plain training, a row per case: gramjd and TorchJD, both with UPGrad.

    Args:
        axes: where to draw.
        cases: of the benchmark of a step.
        value: the ratio, from a case's outcomes and the name of a contender.
    """
    for library, shift in (("gramjd", -0.13), ("torchjd", 0.13)):
        name, colour = f"{library} UPGrad", CONTENDER_COLOURS[library]
        shown = [(k + shift, value(case, name)) for k, case in enumerate(cases) if not _refused(case, library)]
        ys, ratios = [y for y, _ in shown], [ratio for _, ratio in shown]
        axes.hlines(ys, 1, ratios, color=colour, lw=2.2, alpha=0.5)
        axes.plot(ratios, ys, "o", color=colour, ms=6, label=LIBRARIES[library])
        for y, ratio in shown:
            text = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1.95 else f"{ratio:.2f}"
            axes.annotate(text, (ratio, y), (6, 0), textcoords="offset points", va="center", fontsize=8, color=colour)
    for k, case in enumerate(cases):
        if _refused(case, "torchjd"):
            axes.annotate(
                *("refused", (1, k + 0.13), (6, 0)),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=CONTENDER_COLOURS["torchjd"],
            )
    _times_over_plain(axes)
    axes.set_xlim(0.9, 2 * axes.get_xlim()[1])
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.grid(alpha=0.25, axis="x")
    return bare(axes)


def overview(results: Mapping[str, Any]) -> Figure:
    """Time and memory side by side, of each model at its largest m."""
    largest: dict[str, Mapping[str, Any]] = {}
    for case in results["cases"].values():
        largest[case["title"]] = max(case, largest.get(case["title"], case), key=lambda c: c["m"])
    cases = list(largest.values())
    figure = figure_of(10, 1.4 + 0.45 * len(cases))
    time, space = figure.subplots(1, 2, sharey=True)
    draw_overview(time, cases, lambda case, name: case["contenders"][name]["ratio"]["median"])
    draw_overview(space, cases, _memory_over_plain)
    time.set_xlabel("time of a step (plain training = 1)")
    space.set_xlabel("peak memory (plain training = 1)")
    time.set_yticks(range(len(cases)), [f"{case['title']}, m = {case['m']}" for case in cases])
    handles, labels = time.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=2, fontsize=9.5)
    return figure


def _memory_over_plain(case: Mapping[str, Any], name: str) -> float:
    return float(case["contenders"][name]["peak_bytes"] / case["contenders"]["plain"]["peak_bytes"])


def draw_growth(axes: Axes, sweep: Mapping[str, Any]) -> Axes:
    """Time of a Gramian and of a backward pass against one size; dashed the slope of the planned operations.

    Args:
        axes: where to draw.
        sweep: one of the benchmark of growth.
    """
    sizes = [point["size"] for point in sweep["points"]]
    for name, colour, marker in (("gramian", BLUE, "o"), ("backward", GREY, "s")):
        axes.plot(
            sizes, [1e3 * p[name] for p in sweep["points"]], color=colour, marker=marker, ms=4.5, lw=1.5, label=name
        )
    last = sweep["points"][-1]
    slope = [1e3 * last["gramian"] * p["operations"] / last["operations"] for p in sweep["points"]]
    axes.plot(sizes, slope, color=VERMILION, lw=1.2, ls="--", label="planned operations (slope)", zorder=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5 * min(1e3 * min(p["gramian"], p["backward"]) for p in sweep["points"]))
    axes.set_xticks(sizes, [str(n) for n in sizes], fontsize=8)
    axes.xaxis.set_minor_locator(require("matplotlib.ticker", "profile").NullLocator())
    plain_decades(axes.yaxis)
    axes.set_xlabel(sweep["title"])
    axes.grid(alpha=0.25)
    return bare(axes)


def growth(results: Mapping[str, Any]) -> Figure:
    """A panel per sweep."""
    figure = figure_of(11, 4.0)
    panels = figure.subplots(1, len(results["sweeps"]))
    for axes, sweep in zip(panels, results["sweeps"].values(), strict=True):
        draw_growth(axes, sweep)
    panels[0].set_ylabel("milliseconds")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=3, fontsize=9)
    return figure


FIGURES: dict[str, tuple[str, Callable[[Mapping[str, Any]], Figure]]] = {
    "overview.svg": ("step_cpu.json", overview),
    "memory.svg": ("memory_cpu.json", memory),
    "step_time.svg": ("step_cpu.json", steps),
    "growth.svg": ("growth_cpu.json", growth),
}


def digest(path: Path) -> str:
    """The hash of a result file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outdated(root: Path, results: Path) -> list[str]:
    """Figures that do not carry the hash of their result, or are not there."""
    found = []
    for name, (file, _) in FIGURES.items():
        source, figure = root / results / file, root / FOLDER / name
        if source.is_file():
            stamp = STAMP.search(figure.read_text()) if figure.is_file() else None
            if stamp is None or stamp[1] != digest(source):
                found.append(name)
    return found


def write(root: Path, results: Path) -> list[Path]:
    """Draw the outdated figures anew; returns their paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    written = []
    for name in outdated(root, results):
        file, draw = FIGURES[name]
        source = root / results / file
        matplotlib = require("matplotlib", "profile")
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "gramjd"}):
            told = {"Date": None, "Description": f"made from {results / file}, sha256 {digest(source)}"}
            draw(json.loads(source.read_text())).savefig(root / FOLDER / name, metadata=told)
        written.append(root / FOLDER / name)
    return written
