"""Convex quadratics: objectives of the toy problems, and of those that theorem 1 is held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gramjd.aggregation import MGDA

LEAST_CURVATURE = 0.05  # the greatest is 1: as ill-conditioned as a few hundred steps can still resolve


@dataclass(frozen=True)
class Quadratics:
    """`f_i(x) = (x - c_i)^T A_i (x - c_i) / 2`.

    With positive definite `A_i` they are strictly convex, and the Pareto set is
    `{x(w) = (sum w_i A_i)^-1 sum w_i A_i c_i : w in the simplex}`: bounded, and every point is dominated by one of its
    points, as theorem 1 asks.

    Args:
        matrices: `A`, [m, n, n], float64.
        centres: `c`, [m, n].
    """

    matrices: Tensor
    centres: Tensor

    def objectives(self, x: Tensor) -> Tensor:
        """`f(x)`, [..., m], at points `x` [..., n]."""
        d = x.unsqueeze(-2) - self.centres
        return torch.einsum("...mi,mij,...mj->...m", d, self.matrices, d) / 2

    def jacobian(self, x: Tensor) -> Tensor:
        """`J`, [m, n], at one point `x` [n]."""
        return torch.einsum("mij,mj->mi", self.matrices, x - self.centres)

    def beta(self) -> float:
        """The least `beta` with `|J(x) - J(y)|_F <= beta |x - y|`: the root of the top eigenvalue of `sum A_i^2`."""
        return float(torch.linalg.eigvalsh((self.matrices @ self.matrices).sum(0))[-1].sqrt())

    def pareto_point(self, w: Tensor) -> Tensor:
        """`x(w)` [n], which minimises `sum w_i f_i`: a point of the Pareto set for every w in the simplex."""
        A = torch.einsum("m,mij->ij", w, self.matrices)
        return torch.linalg.solve(A, torch.einsum("m,mij,mj->i", w, self.matrices, self.centres))


@dataclass(frozen=True)
class Gap:
    """How far a point is from the Pareto set, with `lower <= distance <= upper` proven.

    Args:
        lower: `min |J^T w| / beta` over the simplex: at a Pareto point y some `J(y)^T w` is zero, and
            `|J(x)^T w| <= |J(x) - J(y)| |w| <= beta |x - y|`.
        upper: `|x - x(w)|` for the minimising w: `x(w)` is in the Pareto set.
        objectives: `|f(x) - f(x(w))|`, no less than the distance of f(x) to the Pareto front.
    """

    lower: float
    upper: float
    objectives: float


def gap(problem: Quadratics, x: Tensor) -> Gap:
    """The distance of `x` [n] to the Pareto set of `problem`, bracketed.

    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> line = Quadratics(torch.stack([eye, eye]), torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64))
    >>> found = gap(line, torch.tensor([1.0, 3.0], dtype=torch.float64))  # the Pareto set is the segment from 0 to 2
    >>> round(found.upper, 9), found.lower <= 3.0
    (3.0, True)
    """
    J = problem.jacobian(x)
    w = MGDA()(J @ J.mT)
    nearest = problem.pareto_point(w)
    return Gap(
        float((J.mT @ w).norm()) / problem.beta(),
        float((x - nearest).norm()),
        float((problem.objectives(x) - problem.objectives(nearest)).norm()),
    )


def draw_problem(m: int, n: int, seed: int) -> tuple[Quadratics, Tensor]:
    """Random quadratics and a starting point [n] well outside their Pareto set.

    Args:
        m: number of objectives.
        n: number of variables.
        seed: of the draw. Curvatures are log-uniform from `LEAST_CURVATURE` to 1 along random directions.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(m, n, n, dtype=torch.float64, generator=generator)
    directions = torch.linalg.qr(normal).Q
    curvatures = LEAST_CURVATURE ** torch.rand(m, 1, n, dtype=torch.float64, generator=generator)
    centres = torch.randn(m, n, dtype=torch.float64, generator=generator)
    start = 10 * torch.randn(n, dtype=torch.float64, generator=generator)
    return Quadratics((directions * curvatures) @ directions.mT, centres), start
