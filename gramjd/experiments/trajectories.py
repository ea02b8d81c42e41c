"""`gramjd paper trajectories`: the paths of all aggregators of Table 1 on the paper's two toy problems.

Two things are measured on each path. *Conflict*: the least `g_i . A(J) / (|g_i| max_j |g_j|)` over objectives and
steps; below zero, a small enough step increases objective i. *Stalling* on EWQ: after all steps one coordinate is still
farther from the optimum than `STALLED` times as far as the mean gradient leaves it, without having been oscillated to.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gramjd import arguments
from gramjd.experiments import aggregators, trajectory_plots
from gramjd.experiments.report import align
from gramjd.experiments.results import write
from gramjd.experiments.running import progress, threads
from gramjd.experiments.toys import TOYS, Toy, path
from gramjd.extras import require
from gramjd.profiling.environment import describe

STALLED = 5.0
HEADER = ("aggregator", "problem", "least gain", "largest increase", "steps with an increase", "stalled starts")


add_arguments = arguments.paper_trajectories


def run(args: argparse.Namespace) -> int:
    """Follow every path, save the plots and `trajectories.json`, print the table (or the JSON)."""
    require("matplotlib", "demo")
    names = aggregators.select(args.weightings)
    with threads(args.threads):
        paths = {key: _paths(toy, names, args.seed) for key, toy in TOYS.items()}
        found = {key: {name: examine(TOYS[key], name, of[name], args.seed) for name in of} for key, of in paths.items()}
    results = {"environment": describe(packages=("torch", "gramjd")), "seed": args.seed, "toys": found}
    text = write(results, args.out / "trajectories.json")
    plots = trajectory_plots.save(paths, args.out)
    print(text if args.json else f"{table(found)}\n\nPlots: {', '.join(map(str, plots))}")
    return 0


def _paths(toy: Toy, names: Sequence[str], seed: int) -> dict[str, list[Tensor]]:
    """Name to one path per start."""
    found = {}
    for name in progress("aggregator", names):
        entry = aggregators.ENTRIES[name]
        found[name] = [path(toy, entry.make(seed).aggregate, toy.rate * entry.toy_rate, start) for start in toy.starts]
    return found


def examine(toy: Toy, name: str, paths: Sequence[Tensor], seed: int) -> dict[str, Any]:
    """Where the paths end, how far they increased an objective, from which starts they stalled.

    Args:
        toy: the problem.
        name: the aggregator, to evaluate it along the paths.
        paths: one per start.
        seed: of the aggregator, as on the paths.
    """
    rises = [(toy.objectives(p)[1:] - toy.objectives(p)[:-1]) for p in paths]
    return {
        "rate": toy.rate * aggregators.ENTRIES[name].toy_rate,
        "ends": [p[-1].tolist() for p in paths],
        "least_gain": min(least_gain(toy, name, p, seed) for p in paths),
        "largest_increase": max(float(rise.max()) for rise in rises),
        "steps_with_increase": sum(int((rise > 0).any(1).sum()) for rise in rises),
        "stalled": [list(start) for start, p in zip(toy.starts, paths, strict=True) if stalled(toy, p)],
    }


def least_gain(toy: Toy, name: str, points: Tensor, seed: int) -> float:
    """Least `g_i . A(J) / (|g_i| max_j |g_j|)` along a path; zero gradients do not count."""
    aggregate, least = aggregators.ENTRIES[name].make(seed).aggregate, float("inf")
    for point in points[:-1]:
        J = toy.jacobian(point)
        lengths = J.norm(dim=1)
        gains = (J @ aggregate(J))[lengths > 0] / (lengths[lengths > 0] * lengths.amax())
        least = min(least, float(gains.amin())) if len(gains) else least
    return least


def stalled(toy: Toy, points: Tensor) -> bool:
    """Whether a path on EWQ is stuck: `STALLED` times farther from 0 than Mean's in a coordinate, and hardly moving.

    On EWQ each step of Mean takes `1 - rate` of each coordinate. Always False on CQF, whose optimum is a curve.

    >>> import torch
    >>> from gramjd.experiments.toys import EWQ
    >>> stalled(EWQ, torch.tensor([[0.0, -3.0]] * 51, dtype=torch.float64))
    True
    """
    if bool(toy.centres.any()):
        return False
    mean = points[0].abs() * (1 - toy.rate) ** toy.steps
    far = points[-1].abs() > STALLED * mean + 2 * (points[-1] - points[-2]).abs()
    return bool(far.any())


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The findings as text."""
    rows = [list(HEADER)]
    for key, by_name in found.items():
        for name, entry in by_name.items():
            cells = [f"{entry[field]:.1e}" for field in ("least_gain", "largest_increase")]
            stalls = f"{len(entry['stalled'])} of {len(entry['ends'])}" if key == "ewq" else "-"
            rows.append([name, key.upper(), *cells, str(entry["steps_with_increase"]), stalls])
    return align(rows)
