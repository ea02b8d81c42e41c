"""The Jacobian of weighted residuals in two forms: as a graph that is walked, or as columns [m, n] where n is small."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from gramjd.engine import compute
from gramjd.engine.cotangent import add_rows
from gramjd.engine.given import GivenRows
from gramjd.engine.graph import Edge, Selected
from gramjd.engine.memory import MemoryLimits, Meter, OverBudgetError
from gramjd.engine.parameter import Jacobian as Found
from gramjd.engine.walk import walked
from gramjd.errors import AggregatorError, BudgetError, graph_errors, in_bytes
from gramjd.optim.residuals import Residuals

Divisors = Sequence[Tensor] | None

SMALL = 4  # up to so many numbers in the parameters per residual J is formed as a matrix, of the size of SMALL Gramians


class Jacobian(ABC):
    """J [m, n] of residuals times the roots of their weights, over n numbers in the parameters; in float64.

    Args:
        residuals: m of them, with their graph, which stays usable.
        parameters: those that no residual reaches have columns of zeros.
        budget: `memory_budget` of `gramjd.gramian`.
    """

    def __init__(self, residuals: Residuals, parameters: Selected, budget: int | None) -> None:
        """Note what it is the Jacobian of."""
        self.residuals, self.parameters, self.budget = residuals, parameters, budget

    @abstractmethod
    def gramian(self, divisors: Divisors = None) -> Tensor:
        """`J D^-2 J^T` [m, m], with the diagonal of D as a number or a tensor of its shape per parameter."""

    @abstractmethod
    def pull(self, w: Tensor) -> list[Tensor]:
        """`J^T w` for w [m], a tensor per parameter."""

    @abstractmethod
    def push(self, v: Sequence[Tensor]) -> Tensor:
        """`J v` [m] for a tensor per parameter."""

    @abstractmethod
    def lengths(self, scaling: str) -> list[Tensor]:
        """Per parameter the root mean square of its columns ("tensor"), or the length of each ("coordinate")."""


class WalkedJacobian(Jacobian):
    """By walks and backward passes, without a row of J."""

    _shares: dict[int, Tensor] | None = None

    def gramian(self, divisors: Divisors = None) -> Tensor:
        if divisors is None:
            with graph_errors():
                G = compute.total(self.residuals.parts, self.parameters, torch.float64, self.budget)
        else:
            squares = {id(p): d.square() for p, d in zip(self.parameters, divisors, strict=True)}
            first, *rest = [share / squares[key] for key, share in self._by_parameter().items()]
            G = sum(rest, first)
        roots = self.residuals.roots
        return G if roots is None else G.mul_(roots).mul_(roots[:, None])

    def pull(self, w: Tensor) -> list[Tensor]:
        parts = self.residuals.parts
        found = torch.autograd.grad(
            parts, list(self.parameters), self.residuals.pulled_back(w), retain_graph=True, allow_unused=True
        )
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]

    def push(self, v: Sequence[Tensor]) -> Tensor:
        """Inner products with the gradient of `<p, v>`, which is v."""
        with torch.enable_grad():
            inner = torch.stack([(p * part).sum().double() for p, part in zip(self.parameters, v, strict=True)]).sum()
        with graph_errors():
            found = compute.rectangle(self.residuals.parts, [inner], self.parameters, torch.float64, self.budget)[:, 0]
        roots = self.residuals.roots
        return found if roots is None else found * roots

    def lengths(self, scaling: str) -> list[Tensor]:
        shares, roots = self._by_parameter(), self.residuals.roots
        weights = 1.0 if roots is None else roots.square()
        nothing = self.residuals.values.new_zeros(())
        return [
            (shares[id(p)].diagonal() * weights).sum().div(p.numel()).sqrt() if id(p) in shares else nothing
            for p in self.parameters
        ]

    def _by_parameter(self) -> dict[int, Tensor]:
        if self._shares is None:
            with graph_errors():
                found = compute.shares(self.residuals.parts, self.parameters, torch.float64, self.budget)
            self._shares = {id(p): share for p, share in found}
        return self._shares


class DenseJacobian(Jacobian):
    """As a matrix, from one walk: for small n quicker than anything else.

    Attributes:
        matrix: J [m, n].
    """

    def __init__(self, residuals: Residuals, parameters: Selected, budget: int | None) -> None:
        """Walk for the columns."""
        super().__init__(residuals, parameters, budget)
        self._sizes = [p.numel() for p in parameters]
        self.matrix = _columns(residuals.parts, parameters, budget)
        if residuals.roots is not None:
            self.matrix.mul_(residuals.roots[:, None])
        if not bool(torch.isfinite(self.matrix).all()):
            bad = int((~torch.isfinite(self.matrix)).sum())
            raise AggregatorError(f"the Jacobian must be finite; {bad} of {self.matrix.numel()} entries are not")

    def scaled(self, divisors: Divisors) -> Tensor:
        """`J D^-1` [m, n]."""
        if divisors is None:
            return self.matrix
        pairs = zip(divisors, self.parameters, strict=True)
        return self.matrix / torch.cat([d.expand(p.shape).reshape(-1) for d, p in pairs])

    def gramian(self, divisors: Divisors = None) -> Tensor:
        A = self.scaled(divisors)
        return A @ A.mT

    def pull(self, w: Tensor) -> list[Tensor]:
        return self.split(self.matrix.mT @ w)

    def push(self, v: Sequence[Tensor]) -> Tensor:
        return self.matrix @ torch.cat([part.reshape(-1).double() for part in v])

    def lengths(self, scaling: str) -> list[Tensor]:
        squares = self.split(self.matrix.square().sum(0))
        return [(s if scaling == "coordinate" else s.mean()).sqrt() for s in squares]

    def split(self, vector: Tensor) -> list[Tensor]:
        """n numbers in the shapes of the parameters."""
        parts = vector.split(self._sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]


FORMS: dict[str, type[WalkedJacobian] | type[DenseJacobian]] = {"gramian": WalkedJacobian, "jacobian": DenseJacobian}


def jacobian_of(residuals: Residuals, parameters: Selected, budget: int | None = None, form: str = "auto") -> Jacobian:
    """J in a form: "gramian" for walks, "jacobian" for a matrix, "auto" for the matrix where it is small."""
    n = sum(p.numel() for p in parameters)
    if form == "auto":
        form = "jacobian" if n <= SMALL * len(residuals.values) else "gramian"
    return FORMS[form](residuals, parameters, budget)


def _columns(losses: list[Tensor], parameters: Selected, budget: int | None) -> Tensor:
    """J [m, n] without weights."""
    m, ends = sum(loss.numel() for loss in losses), [0]
    for p in parameters:
        ends.append(ends[-1] + p.numel())
    places = {id(p): slice(lo, hi) for p, lo, hi in zip(parameters, ends, ends[1:], strict=False)}
    J = torch.zeros(m, ends[-1], dtype=torch.float64, device=losses[0].device)
    with graph_errors():
        graph = compute.read(losses, parameters)

        def note(edge: Edge, found: Found) -> None:
            columns = J[:, places[id(graph.targets[edge])]]
            for factor in itertools.chain(*found.parts(J.dtype)):  # those that can be are joined
                given = factor.dense if isinstance(factor, GivenRows) else factor
                rows = given.materialise(J.dtype)
                add_rows(columns, given.owners, rows.reshape(len(rows), -1))

        limits = MemoryLimits.of(losses, budget)
        try:
            walked(graph, losses, note, Meter(limits))  # no notice of dense rows, which is what is asked for
        except OverBudgetError:
            raise BudgetError(
                f"the rows of all {m} residuals do not fit in {in_bytes(limits.rows)} at once: raise memory_budget, or"
                ' take solver="gramian", which can do with fewer at a time'
            ) from None
    return J
