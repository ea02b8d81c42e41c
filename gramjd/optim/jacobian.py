"""J itself, [m, n], where n is small."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.engine import compute
from gramjd.engine.cotangent import add_rows
from gramjd.engine.given import GivenRows
from gramjd.engine.graph import Edge, Selected
from gramjd.engine.memory import MemoryLimits, Meter, OverBudgetError
from gramjd.engine.parameter import Jacobian
from gramjd.engine.walk import walked
from gramjd.errors import BudgetError, graph_errors, in_bytes


def jacobian(losses: list[Tensor], parameters: Selected, memory_budget: int | None = None) -> Tensor:
    """J [m, n] in float64 from one walk: row i is the gradient of loss i, the columns follow the parameters.

    A parameter that no loss reaches has columns of zeros. The graph stays usable.

    Raises:
        GraphError: as `gramian` does.
        BudgetError: rows that have to be stacked on the way do not fit.
    """
    m, ends = sum(loss.numel() for loss in losses), [0]
    for p in parameters:
        ends.append(ends[-1] + p.numel())
    places = {id(p): slice(lo, hi) for p, lo, hi in zip(parameters, ends, ends[1:], strict=False)}
    J = torch.zeros(m, ends[-1], dtype=torch.float64, device=losses[0].device)
    with graph_errors():
        graph = compute.read(losses, parameters)

        def note(edge: Edge, found: Jacobian) -> None:
            columns = J[:, places[id(graph.targets[edge])]]
            for factor in found.factors:
                given = factor.dense if isinstance(factor, GivenRows) else factor
                rows = given.materialise(J.dtype)
                add_rows(columns, given.owners, rows.reshape(len(rows), -1))

        limits = MemoryLimits.of(losses, memory_budget)
        try:
            walked(graph, losses, note, Meter(limits))  # no notice of dense rows, which is what is asked for
        except OverBudgetError:
            raise BudgetError(
                f"the rows of all {m} residuals do not fit in {in_bytes(limits.rows)} at once: raise memory_budget, or"
                ' take solver="gramian", which can do with fewer at a time'
            ) from None
    return J
