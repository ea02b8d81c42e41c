"""The paper's two toy problems, two objectives of two variables each, and the paths that aggregators take on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gramjd.experiments.quadratics import Quadratics


@dataclass(frozen=True)
class Toy(Quadratics):
    """Two convex quadratics of two variables, and how to descend on them.

    Args:
        title: for plots.
        rate: learning rate; that of an aggregator is this times `Entry.toy_rate`.
        steps: number of steps.
        starts: starting points.
        window: what a plot shows: left, right, bottom, top.
    """

    title: str
    rate: float
    steps: int
    starts: tuple[tuple[float, float], ...]
    window: tuple[float, float, float, float]


def path(toy: Toy, aggregate: Callable[[Tensor], Tensor], rate: float, start: tuple[float, float]) -> Tensor:
    """The points `x_0 ... x_steps`, [steps + 1, 2], float64, of `x <- x - rate A(J f(x))`.

    Args:
        toy: the problem.
        aggregate: `A`, from J [2, 2] to the update [2].
        rate: learning rate.
        start: `x_0`.

    >>> path(EWQ, lambda J: J.mean(0), 0.075, (0.0, 1.0))[:2, 1].tolist()
    [1.0, 0.925]
    """
    points = [torch.tensor(start, dtype=torch.float64)]
    for _ in range(toy.steps):
        points.append(points[-1] - rate * aggregate(toy.jacobian(points[-1])))
    return torch.stack(points)


def _rotated(angle: float, first: tuple[float, float], second: tuple[float, float]) -> Tensor:
    """`2 U S_1 U^T` and `2 U^T S_2 U` for the rotation `U` by `angle`."""
    c, s = math.cos(angle), math.sin(angle)
    U = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    S1, S2 = (torch.diag(torch.tensor(values, dtype=torch.float64)) for values in (first, second))
    return 2 * torch.stack([U @ S1 @ U.T, U.T @ S2 @ U])


EWQ = Toy(
    matrices=2 * torch.diag_embed(torch.eye(2, dtype=torch.float64)),
    centres=torch.zeros(2, 2, dtype=torch.float64),
    title="EWQ: f = (x1², x2²)",
    rate=0.075,
    steps=50,
    starts=((3.0, -2.0), (0.0, -3.0), (-4.0, 4.0), (-3.0, 4.0), (-3.5, -0.75)),
    window=(-5.0, 5.0, -5.0, 5.0),
)
CQF = Toy(
    matrices=_rotated(math.pi / 16, (1.0, 0.01), (3.0, 0.01)),
    centres=torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64),
    title="CQF: two narrow valleys that cross",
    rate=0.05,
    steps=500,
    starts=((0.5, 0.5), (-1.0, 7.0), (0.0, 0.0), (1.0, 6.0)),
    window=(-3.0, 3.0, -1.0, 8.0),
)
TOYS = {"ewq": EWQ, "cqf": CQF}
