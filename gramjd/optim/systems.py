"""The linear system of a step, between samples [m, m] or between parameters [n, n], for one lambda after the other.

Both minimise `|r - J s|^2 + lambda |D s|^2` over the step `-s`, with r and J the weighted residuals and their Jacobian,
and D a diagonal matrix.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gramjd.aggregation.solvers.damped import solve_damped
from gramjd.aggregation.solvers.rounding import EPS
from gramjd.errors import AggregatorError
from gramjd.optim.jacobian import DenseJacobian, Divisors, Jacobian

FEW = 64  # up to so many parameters the cost of a system is small whatever m is


@dataclass(frozen=True)
class Direction:
    """A step for one lambda.

    Args:
        step: `s`, a tensor per parameter; the parameters move to `p - s`.
        predicted: by how much the loss falls to first order, `1/2 |r|^2 - 1/2 |r - J s|^2`.
        slope: `r^T J s`, by how much it falls per unit of length at the beginning.
    """

    step: list[Tensor]
    predicted: float
    slope: float


class System(ABC):
    """A linear least squares problem that is solved for several lambdas.

    Attributes:
        unit: the mean squared length of the rows of `J D^-1`, which a relative damping is counted in.
        gradient_norm: `|D^-1 J^T r|`.
        least: the smallest lambda that rounding leaves of use.
    """

    unit: float
    gradient_norm: float
    least: float

    @abstractmethod
    def direction(self, damping: float) -> Direction | None:
        """The step for lambda = `damping`; None if the system is singular up to rounding."""


def system_of(J: Jacobian, divisors: Divisors) -> System:
    """Between parameters where the form of J allows for it and that is cheaper, or cheap and more precise."""
    if isinstance(J, DenseJacobian):
        m, n = J.matrix.shape
        if 2 * n <= m or n <= min(m, FEW):
            return ParameterSystem(J, divisors)
    return SampleSystem(J, divisors)


class SampleSystem(System):
    """`w = (J D^-2 J^T + lambda I)^-1 r` and `s = D^-2 J^T w`: one Cholesky factorisation of an m x m matrix each."""

    def __init__(self, J: Jacobian, divisors: Divisors) -> None:
        """Form the Gramian."""
        self._J, self._divisors, r = J, divisors, J.residuals.values
        self._G = checked(J.gramian(divisors))
        self._Gr = self._G @ r
        self.unit = float(self._G.diagonal().mean())
        self.gradient_norm = math.sqrt(max(0.0, float(r @ self._Gr)))
        # What rounding leaves of an eigenvalue that is zero, beside the trace, which is no less than the largest one.
        self.least = max(J.residuals.eps, 4 * len(r) * EPS) * len(r) * self.unit

    def direction(self, damping: float) -> Direction | None:
        H = self._G.clone()
        H.diagonal().add_(damping)
        w, sound = solve_damped(H, self._J.residuals.values, self._J.residuals.eps)
        if not bool(sound):
            return None
        Gw, step = self._G @ w, self._J.pull(w)
        if self._divisors is not None:
            step = [s / d.square() for s, d in zip(step, self._divisors, strict=True)]
        # r - G w = lambda w, so that |r|^2 - |r - G w|^2 = |G w|^2 + 2 lambda w^T G w: no difference of large numbers.
        return Direction(step, float(Gw @ Gw / 2 + damping * (w @ Gw)), float(self._Gr @ w))


class ParameterSystem(System):
    """`min |r - A z|^2 + lambda |z|^2` with `A = J D^-1`, `s = D^-1 z`: a QR factorisation of A, and one per lambda.

    `A = Q R` leaves `[R; sqrt(lambda) I]` [2 n, n] to be factorised again. The condition number of A enters, not its
    square, as it would with `J J^T` or `J^T J`.
    """

    def __init__(self, J: DenseJacobian, divisors: Divisors) -> None:
        """Factorise the columns, with r as one more: `Q^T r` comes along without Q."""
        A, r = J.scaled(divisors), J.residuals.values
        self._J, self._divisors, n = J, divisors, A.shape[1]
        factor = _triangle(torch.cat([A, r[:, None]], 1))
        self._R, self._q, self._gradient = factor[:n, :n], factor[:n, n], A.mT @ r
        self.unit = float(A.square().sum() / len(A))
        self.gradient_norm = float(self._gradient.norm())
        self.least = J.residuals.eps * self.unit

    def direction(self, damping: float) -> Direction | None:
        n = len(self._R)
        stacked = self._R.new_zeros(2 * n, n + 1)
        stacked[:n, :n], stacked[:n, n] = self._R, self._q
        stacked[n:, :n].diagonal().fill_(math.sqrt(damping))
        factor = _triangle(stacked)
        z = torch.linalg.solve_triangular(factor[:n, :n], factor[:n, n:], upper=True)[:, 0]
        if not bool(torch.isfinite(z).all()):
            return None
        Rz, step = self._R @ z, self._J.split(z)
        if self._divisors is not None:
            step = [s / d for s, d in zip(step, self._divisors, strict=True)]
        return Direction(step, float(Rz @ Rz / 2 + damping * (z @ z)), float(self._gradient @ z))


def _triangle(matrix: Tensor) -> Tensor:
    """R of its QR factorisation."""
    return torch.linalg.qr(matrix, mode="r")[1]


def checked(G: Tensor) -> Tensor:
    """`G` [m, m], if it is finite: the diagonal tells where a gradient is not, and bounds all other entries.

    Raises:
        AggregatorError: a gradient is not finite.
    """
    bad = int((~torch.isfinite(G.diagonal())).sum())
    if bad:
        raise AggregatorError(
            f"the gradients of {bad} of {len(G)} residuals are not finite, or too long for float64: look for a NaN or "
            "an overflow in the backward pass"
        )
    return G


def largest(now: Sequence[Tensor], before: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The largest lengths of columns that there were, in the dtypes of the parameters, which a saved state has."""
    rounded = [length.to(p.dtype) for length, p in zip(now, parameters, strict=True)]
    return [new if old is None else torch.maximum(new, old) for new, old in zip(rounded, before, strict=True)]


def divisors_of(lengths: Sequence[Tensor]) -> list[Tensor]:
    """The diagonal of D: one where a length is zero, as nothing moves there."""
    return [torch.where(length > 0, length, 1.0) for length in lengths]
