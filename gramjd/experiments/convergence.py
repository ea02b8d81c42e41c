"""`gramjd paper convergence`: theorem 1 on convex quadratics, with the step that it allows.

Theorem 1: for beta-smooth convex objectives, UPGrad with the step `1 / (beta sqrt(m))` and bounded weights converges to
the Pareto front. Here beta is known exactly, and the distance to the Pareto set is bracketed by certificates.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gramjd import arguments
from gramjd.experiments import aggregators, plots
from gramjd.experiments.quadratics import Quadratics, draw_problem, gap
from gramjd.experiments.report import align
from gramjd.experiments.results import write
from gramjd.experiments.running import progress, threads
from gramjd.extras import require
from gramjd.profiling.environment import describe
from gramjd.profiling.figure_style import clean, plain_decades

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROBLEMS = ((2, 2), (4, 10), (8, 20), (16, 10))  # (m, n); with 16 gradients in 10 dimensions G is singular throughout
RECORDS = 40  # points of a curve
FLOOR = 1e-17  # of the plot
HEADER = (
    *("aggregator", "m", "n", "distance at most", "and at least"),
    *("largest weight", "in the last tenth", "increases"),
)


add_arguments = arguments.paper_convergence


def run(args: argparse.Namespace) -> int:
    """Descend on every problem, save `convergence.png` and `convergence.json`, print the table (or the JSON)."""
    require("matplotlib", "demo")
    jobs = [
        (name, m, n, seed)
        for m, n in PROBLEMS
        for name in aggregators.select(args.weightings)
        for seed in range(args.seeds)
    ]
    with threads(args.threads):
        runs = []
        for name, m, n, seed in progress("run", jobs):
            problem, start = draw_problem(m, n, seed)
            found = descend(problem, start, name, steps=args.steps, seed=seed)
            runs.append({"weighting": name, "m": m, "n": n, "seed": seed, **found})
    environment = describe(packages=("torch", "gramjd"))
    results = {"environment": environment, "steps": args.steps, "seeds": args.seeds, "runs": runs}
    text = write(results, args.out / "convergence.json")
    plot = plots.save(draw(runs), args.out / "convergence.png")
    print(text if args.json else f"{align(rows(runs))}\n\nPlot: {plot}")
    return 0


def descend(problem: Quadratics, start: Tensor, name: str, *, steps: int, seed: int) -> dict[str, Any]:
    """`x <- x - A(J) / (beta sqrt(m))` and what is seen on the way.

    Args:
        problem: the objectives.
        start: `x_0`, [n].
        name: an aggregator of Table 1.
        steps: number of steps.
        seed: of the aggregator.

    Returns:
        `at`: log-spaced steps; `lower`, `upper`, `objectives`: the gap there; `largest_weight` over all steps and
        `late_weight` over the last tenth of them, of weights that sum to one without conflict; `increases`: steps on
        which an objective rose by more than rounding.
    """
    weighting = aggregators.ENTRIES[name].make(seed)
    m = len(problem.centres)
    rate = 1 / (problem.beta() * math.sqrt(m))
    records = {round(steps ** (k / (RECORDS - 1))) for k in range(RECORDS)} | {0}
    x, gaps, largest, increases = start, {0: gap(problem, start)}, [], 0
    values = problem.objectives(x)
    for step in range(1, steps + 1):
        J = problem.jacobian(x)
        w = weighting(J @ J.mT)
        x = x - rate * (J.mT @ w)
        before, values = values, problem.objectives(x)
        largest.append(float(w.amax()))
        increases += int(bool((values > before + 1e-12 * before.amax()).any()))
        if step in records:
            gaps[step] = gap(problem, x)
    fields = {field.name: [getattr(g, field.name) for g in gaps.values()] for field in dataclasses.fields(gaps[0])}
    late = largest[-max(1, steps // 10) :]
    return {
        "at": list(gaps),
        **fields,
        "largest_weight": max(largest),
        "late_weight": max(late),
        "increases": increases,
    }


def rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line per aggregator and size, the worst over the seeds, under a head."""
    found = [list(HEADER)]
    groups: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["weighting"], run["m"], run["n"]), []).append(run)
    for (name, m, n), group in groups.items():
        distances = [f"{max(run[bound][-1] for run in group):.1e}" for bound in ("upper", "lower")]
        weights = [f"{max(run[field] for run in group):.3g}" for field in ("largest_weight", "late_weight")]
        found.append([name, str(m), str(n), *distances, *weights, str(sum(run["increases"] for run in group))])
    return found


def draw(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Upper bound of the distance over steps, a panel per size, a line per problem; dotted the lower bound."""
    sizes = list(dict.fromkeys((run["m"], run["n"]) for run in runs))
    figure = plots.new_figure(3.6, "Convex quadratics, step 1/(β√m): upper bound (line) and lower bound (dotted)")
    grid = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(grid, sizes, strict=True):
        for run in (run for run in runs if (run["m"], run["n"]) == size):
            colour = aggregators.ENTRIES[run["weighting"]].colour
            label = run["weighting"] if run["seed"] == 0 else None
            axes.plot(run["at"][1:], _visible(run["upper"]), color=colour, linewidth=1.3, label=label)
            axes.plot(run["at"][1:], _visible(run["lower"]), color=colour, linewidth=0.8, linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel="step", title=f"m = {size[0]}, n = {size[1]}")
        clean(axes)
        plain_decades(axes.xaxis, (1,))
    grid[0].set_ylabel("distance to the Pareto set")
    plots.legend_beside(figure)
    return figure


def _visible(distances: Sequence[float]) -> list[float]:
    """All but the start, zeros lifted to where a logarithmic axis can show them."""
    return [max(distance, FLOOR) for distance in distances[1:]]
