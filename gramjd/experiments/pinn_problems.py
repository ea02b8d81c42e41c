"""Differential equations with known solutions, as residuals of a small network: what `gramjd demo pinns` solves.

Points are drawn once per seed, so that every method minimises the same function: half the sum of squared residuals, a
block divided by the root of its number of points, with a weight per block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

F64 = torch.float64
Blocks = dict[str, Tensor]


def derivative(y: Tensor, x: Tensor) -> Tensor:
    """The gradient of y[i] by x[i], [points, inputs], itself differentiable."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def network(inputs: int, width: int, hidden: int) -> nn.Sequential:
    """`hidden` layers of tanh, float64."""
    sizes = [inputs, *[width] * hidden]
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 1)).double()


@dataclass
class Task:
    """A problem with its points drawn and its network initialised.

    Args:
        model: the network.
        residuals: the blocks, without weights.
        weights: of the blocks.
        unknown: what is to be identified beside the solution: a parameter and its true value.
    """

    model: nn.Module
    residuals: Callable[[], Blocks]
    weights: Mapping[str, float]
    unknown: tuple[Tensor, float] | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained."""
        return [*self.model.parameters(), *([] if self.unknown is None else [self.unknown[0]])]

    def loss(self) -> Tensor:
        """`1/2 sum_blocks weight |r|^2`, for methods that take a number."""
        terms = [0.5 * self.weights[name] * block.square().sum() for name, block in self.residuals().items()]
        return torch.stack(terms).sum()


@dataclass(frozen=True)
class Problem:
    """A differential equation.

    Args:
        title: for tables and figures.
        solution: from points [N, inputs] to values [N].
        low, high: corners of the domain.
        seconds: CPU time of a run.
        build: draws the points and makes the network; torch is seeded before.
        names: of the coordinates. They and the solution have no units.
    """

    title: str
    solution: Callable[[Tensor], Tensor]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seconds: float
    build: Callable[[], Task] = field(repr=False)
    names: tuple[str, ...] = ("x", "t")

    def task(self, seed: int) -> Task:
        """The task of a seed, which decides on points, noise and weights; the state of torch's generator stays."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def grid(self) -> Tensor:
        """Points for the error: 401, or 61 x 61."""
        axes = [
            torch.linspace(a, b, 401 if len(self.low) == 1 else 61, dtype=F64)
            for a, b in zip(self.low, self.high, strict=True)
        ]
        return torch.cartesian_prod(*axes).view(-1, len(axes))

    def error(self, model: nn.Module) -> float:
        """`|u - u*| / |u*|` over the grid."""
        points = self.grid()
        exact = self.solution(points)
        with torch.no_grad():
            return float((model(points)[:, 0] - exact).norm() / exact.norm())


def drawn(count: int, low: tuple[float, ...], high: tuple[float, ...]) -> Tensor:
    """Points in a box, uniform."""
    a, b = torch.tensor(low, dtype=F64), torch.tensor(high, dtype=F64)
    return a + (b - a) * torch.rand(count, len(low), dtype=F64)


def fixed(points: Tensor, axis: int, value: float) -> Tensor:
    """The same points with one coordinate set."""
    points = points.clone()
    points[:, axis] = value
    return points


def mean(values: Tensor) -> Tensor:
    """Divided by the root of their number, so that the sum of squares is a mean."""
    return values / math.sqrt(len(values))


def waves_1d(x: Tensor) -> Tensor:
    """`sin(2 pi x) + sin(8 pi x) / 4`."""
    return (2 * math.pi * x[:, 0]).sin() + (8 * math.pi * x[:, 0]).sin() / 4


def poisson_1d() -> Task:
    """`u'' = f` on (0, 1), zero at both ends."""
    model, x = network(1, 24, 2), drawn(128, (0.0,), (1.0,)).requires_grad_()
    ends = torch.tensor([[0.0], [1.0]], dtype=F64)
    s = 2 * math.pi * x.detach()[:, 0]
    f = -((2 * math.pi) ** 2) * (s.sin() + 4 * (4 * s).sin())

    def residuals() -> Blocks:
        slope = derivative(model(x), x)
        return {"equation": mean(derivative(slope, x)[:, 0] - f), "boundary": mean(model(ends)[:, 0])}

    return Task(model, residuals, {"equation": 1.0, "boundary": 1e3})


def sines_2d(x: Tensor) -> Tensor:
    """`sin(pi x) sin(2 pi y)`."""
    return (math.pi * x[:, 0]).sin() * (2 * math.pi * x[:, 1]).sin()


def poisson_2d() -> Task:
    """`u_xx + u_yy = f` on the unit square, zero on its boundary."""
    low, high = (0.0, 0.0), (1.0, 1.0)
    model, x = network(2, 24, 2), drawn(400, low, high).requires_grad_()
    edge = torch.cat([fixed(drawn(20, low, high), axis, end) for axis in (0, 1) for end in (0.0, 1.0)])
    f = -5 * math.pi**2 * sines_2d(x.detach())

    def residuals() -> Blocks:
        slope = derivative(model(x), x)
        bend = sum(derivative(slope[:, k], x)[:, k] for k in (0, 1))
        return {"equation": mean(bend - f), "boundary": mean(model(edge)[:, 0])}

    return Task(model, residuals, {"equation": 1.0, "boundary": 1e2})


VISCOSITY = 0.02


def burgers_solution(x: Tensor) -> Tensor:
    """By the Cole-Hopf transformation, as two integrals over a normal density (Basdevant et al. 1986)."""
    nodes, weights = np.polynomial.hermite.hermgauss(64)
    where, t = x[:, 0].numpy()[:, None], x[:, 1].numpy()[:, None]
    z = where - 2 * np.sqrt(VISCOSITY * t) * nodes
    terms = weights * np.exp(-np.cos(np.pi * z) / (2 * np.pi * VISCOSITY))
    return torch.from_numpy(-(np.sin(np.pi * z) * terms).sum(1) / terms.sum(1))


def burgers() -> Task:
    """`u_t + u u_x = nu u_xx` for x in (-1, 1), from `-sin(pi x)`: a front forms at 0."""
    low, high = (-1.0, 0.0), (1.0, 1.0)
    model, x = network(2, 20, 3), drawn(700, low, high).requires_grad_()
    start = fixed(drawn(100, low, high), 1, 0.0)
    edge = torch.cat([fixed(drawn(25, low, high), 0, end) for end in (-1.0, 1.0)])
    at_start = -(math.pi * start[:, 0]).sin()

    def residuals() -> Blocks:
        u = model(x)
        slope = derivative(u, x)
        bend = derivative(slope[:, 0], x)[:, 0]
        equation = slope[:, 1] + u[:, 0] * slope[:, 0] - VISCOSITY * bend
        blocks = {"equation": equation, "start": model(start)[:, 0] - at_start, "boundary": model(edge)[:, 0]}
        return {name: mean(block) for name, block in blocks.items()}

    return Task(model, residuals, {"equation": 1.0, "start": 10.0, "boundary": 10.0})


def standing_waves(x: Tensor) -> Tensor:
    """`sin(pi x) cos(pi t) + sin(3 pi x) cos(3 pi t) / 2`."""
    s, t = math.pi * x[:, 0], math.pi * x[:, 1]
    return s.sin() * t.cos() + (3 * s).sin() * (3 * t).cos() / 2


def wave() -> Task:
    """`u_tt = u_xx` on the unit square, at rest at first, zero at both ends."""
    low, high = (0.0, 0.0), (1.0, 1.0)
    model, x = network(2, 24, 2), drawn(500, low, high).requires_grad_()
    start = fixed(drawn(80, low, high), 1, 0.0).requires_grad_()
    edge = torch.cat([fixed(drawn(25, low, high), 0, end) for end in (0.0, 1.0)])
    at_start = standing_waves(start.detach())

    def residuals() -> Blocks:
        slope, first = derivative(model(x), x), model(start)
        equation = derivative(slope[:, 1], x)[:, 1] - derivative(slope[:, 0], x)[:, 0]
        blocks = {
            "equation": equation,
            "start": first[:, 0] - at_start,
            "rest": derivative(first, start)[:, 1],
            "boundary": model(edge)[:, 0],
        }
        return {name: mean(block) for name, block in blocks.items()}

    return Task(model, residuals, {"equation": 1.0, "start": 100.0, "rest": 10.0, "boundary": 100.0})


CONDUCTIVITY, NOISE = 0.1, 0.01


def cooling(x: Tensor) -> Tensor:
    """`sum_k a_k sin(k pi x) exp(-0.1 (k pi)^2 t)` with `a_1 = 1`, `a_3 = 1/2`."""
    terms = [
        a * (k * math.pi * x[:, 0]).sin() * (-CONDUCTIVITY * (k * math.pi) ** 2 * x[:, 1]).exp()
        for k, a in ((1, 1.0), (3, 0.5))
    ]
    return terms[0] + terms[1]


def inverse() -> Task:
    """`u_t = kappa u_xx` from 100 noisy observations of u alone; kappa is unknown, and tried to be 1 at first."""
    low, high = (0.0, 0.0), (1.0, 1.0)
    model, x = network(2, 20, 2), drawn(400, low, high).requires_grad_()
    seen = drawn(100, low, high)
    data = cooling(seen) + NOISE * torch.randn(len(seen), dtype=F64)
    kappa = torch.ones((), dtype=F64, requires_grad=True)

    def residuals() -> Blocks:
        slope = derivative(model(x), x)
        equation = slope[:, 1] - kappa * derivative(slope[:, 0], x)[:, 0]
        return {"equation": mean(equation), "data": mean(model(seen)[:, 0] - data)}

    return Task(model, residuals, {"equation": 1.0, "data": 100.0}, (kappa, CONDUCTIVITY))


SQUARE: dict[str, Any] = {"low": (0.0, 0.0), "high": (1.0, 1.0)}
PROBLEMS: dict[str, Problem] = {
    "poisson-1d": Problem("Poisson 1D", waves_1d, (0.0,), (1.0,), 5.0, poisson_1d, ("x",)),
    "poisson-2d": Problem("Poisson 2D", sines_2d, **SQUARE, seconds=10.0, build=poisson_2d, names=("x", "y")),
    "burgers": Problem("Burgers", burgers_solution, (-1.0, 0.0), (1.0, 1.0), 10.0, burgers),
    "wave": Problem("wave", standing_waves, **SQUARE, seconds=10.0, build=wave),
    "inverse": Problem("inverse heat", cooling, **SQUARE, seconds=10.0, build=inverse),
}
