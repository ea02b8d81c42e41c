"""The linear systems of a step, from J in two forms: its Gramian [m, m], or its columns [m, n] where n is small.

Both minimise `1/2 |r - J s|^2 + lambda/2 |D s|^2` over the step `-s`, with r and J the weighted residuals and their
Jacobian, and D a diagonal matrix.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gramjd.aggregation._check import as_gramian
from gramjd.aggregation.solvers.damped import solve_damped
from gramjd.aggregation.solvers.rounding import EPS
from gramjd.engine import compute
from gramjd.engine.graph import Selected
from gramjd.errors import AggregatorError, graph_errors
from gramjd.optim.jacobian import jacobian
from gramjd.optim.parameters import gradient
from gramjd.optim.residuals import Residuals

Lengths = Sequence[Tensor] | None


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
        lengths: what D is made of, to be kept for the next step; None where D is the identity.
    """

    unit: float
    gradient_norm: float
    least: float
    lengths: Lengths = None

    @abstractmethod
    def direction(self, damping: float) -> Direction | None:
        """The step for lambda = `damping`; None if the system is singular up to rounding."""


class SampleSystem(System):
    """`w = (J D^-2 J^T + lambda I)^-1 r` and `s = D^-2 J^T w`: one Cholesky factorisation of an m x m matrix each.

    With `scaling="tensor"` D holds one number per parameter, the root mean square of its columns of J, of this step or
    of an earlier one, whichever is larger.
    """

    def __init__(
        self, residuals: Residuals, parameters: Selected, lengths: Lengths, scaling: str, budget: int | None
    ) -> None:
        """Walk for the Gramian."""
        self._residuals, self._parameters, r = residuals, parameters, residuals.values
        G, self.lengths = _scaled_gramian(residuals, parameters, lengths, scaling, budget)
        if residuals.roots is not None:
            G = G * residuals.roots * residuals.roots[:, None]
        self._G = as_gramian(G, look=True)
        self._diagonal = self._G.diagonal().clone()
        self._Gr = self._G @ r
        self.unit = float(self._diagonal.mean())
        self.gradient_norm = math.sqrt(max(0.0, float(r @ self._Gr)))
        # What rounding leaves of a zero eigenvalue: of the whole trace, which bounds the largest.
        self.least = max(residuals.eps, 4 * len(r) * EPS) * float(self._diagonal.sum())

    def direction(self, damping: float) -> Direction | None:
        H = self._G.clone()
        H.diagonal().add_(damping)
        w, sound = solve_damped(H, self._residuals.values, self._residuals.eps)
        if not bool(sound):
            return None
        Gw = self._G @ w
        step = gradient(self._residuals, self._parameters, w)
        if self.lengths is not None:
            step = [s / d.square() for s, d in zip(step, divisors_of(self.lengths), strict=True)]
        # r - G w = lambda w, so that |r|^2 - |r - G w|^2 = |G w|^2 + 2 lambda w^T G w: no difference of large numbers.
        return Direction(step, float(Gw @ Gw / 2 + damping * (w @ Gw)), float(self._Gr @ w))


def _scaled_gramian(
    residuals: Residuals, parameters: Selected, lengths: Lengths, scaling: str, budget: int | None
) -> tuple[Tensor, Lengths]:
    """`J D^-2 J^T` without the weights, and what D is made of."""
    parts = residuals.parts
    with graph_errors():
        if scaling == "none":
            return compute.total(parts, parameters, torch.float64, budget), None
        shares = {id(p): share for p, share in compute.shares(parts, parameters, torch.float64, budget)}
    weights = 1.0 if residuals.roots is None else residuals.roots.square()
    nothing = torch.zeros((), dtype=torch.float64, device=residuals.values.device)
    now = [
        (shares[id(p)].diagonal() * weights).sum().div(p.numel()).sqrt() if id(p) in shares else nothing
        for p in parameters
    ]
    found = _largest(now, lengths)
    divisors = {id(p): d for p, d in zip(parameters, divisors_of(found), strict=True)}
    return sum((share / divisors[key].square() for key, share in shares.items()), nothing), found


class ParameterSystem(System):
    """`min |r - A z|^2 + lambda |z|^2` with `A = J D^-1 = Q R`, `s = D^-1 z`: QR of A once, of [R; sqrt(lambda) I] each.

    The condition number of A enters, not its square as in any system with `J J^T` or `J^T J`.

    With `scaling="tensor"` as above; with "coordinate" D holds the length of each column of J.
    """

    def __init__(
        self, residuals: Residuals, parameters: Selected, lengths: Lengths, scaling: str, budget: int | None
    ) -> None:
        """Walk for the columns."""
        J, r = jacobian(residuals.parts, parameters, budget), residuals.values
        if residuals.roots is not None:
            J.mul_(residuals.roots[:, None])
        if not bool(torch.isfinite(J).all()):
            bad = int((~torch.isfinite(J)).sum())
            raise AggregatorError(f"the Jacobian must be finite; {bad} of {J.numel()} entries are not")
        self._parameters, self.lengths = parameters, _lengths(J, parameters, lengths, scaling)
        if self.lengths is not None:
            pairs = zip(divisors_of(self.lengths), parameters, strict=True)
            J.div_(torch.cat([d.expand(p.shape).reshape(-1) for d, p in pairs]))
        self.unit = float(J.square().sum() / len(J))
        Q, self._R = torch.linalg.qr(J)
        self._q = Q.mT @ r
        self._z = J.mT @ r
        self.gradient_norm = float(self._z.norm())
        self.least = residuals.eps * self.unit

    def direction(self, damping: float) -> Direction | None:
        n = self._R.shape[1]
        eye = torch.eye(n, dtype=self._R.dtype, device=self._R.device)
        Q, R = torch.linalg.qr(torch.cat([self._R, math.sqrt(damping) * eye]))
        z = torch.linalg.solve_triangular(R, (Q[: len(self._R)].mT @ self._q)[:, None], upper=True)[:, 0]
        if not bool(torch.isfinite(z).all()):
            return None
        Rz = self._R @ z
        parts = z.split([p.numel() for p in self._parameters])
        step = [part.view(p.shape) for part, p in zip(parts, self._parameters, strict=True)]
        if self.lengths is not None:
            step = [s / d for s, d in zip(step, divisors_of(self.lengths), strict=True)]
        return Direction(step, float(Rz @ Rz / 2 + damping * (z @ z)), float(self._z @ z))


def _lengths(J: Tensor, parameters: Selected, before: Lengths, scaling: str) -> Lengths:
    """What D is made of."""
    if scaling == "none":
        return None
    squares = [columns.square().sum(0) for columns in J.split([p.numel() for p in parameters], 1)]
    if scaling == "tensor":
        return _largest([column.mean().sqrt() for column in squares], before)
    return _largest([column.sqrt().view(p.shape) for column, p in zip(squares, parameters, strict=True)], before)


def _largest(now: list[Tensor], before: Lengths) -> list[Tensor]:
    """The largest lengths that there were."""
    if before is None:
        return now
    return [torch.maximum(new, old.to(new)) for new, old in zip(now, before, strict=True)]


def divisors_of(lengths: Sequence[Tensor]) -> list[Tensor]:
    """The diagonal of D: one where a length is zero, as nothing moves there."""
    return [torch.where(length > 0, length, 1.0) for length in lengths]
