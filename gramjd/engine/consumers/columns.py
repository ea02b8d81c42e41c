"""J itself, a few columns at a time: for aggregators that look at coordinates and not at inner products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gramjd.engine.cotangent import add_rows
from gramjd.engine.factor import Factor, chunks
from gramjd.engine.given import GivenRows
from gramjd.engine.graph import Edge, Graph
from gramjd.engine.layout import Owners
from gramjd.engine.parameter import Jacobian
from gramjd.engine.segments import by_loss

Combine = Callable[[Tensor], Tensor]


class Columns:
    """Applies `combine` ([m, d] columns of J to their update [d]) to each input as soon as its rows are complete."""

    def __init__(self, graph: Graph, m: int, combine: Combine) -> None:
        self.graph, self._m, self._combine = graph, m, combine
        self.updates: dict[Edge, Tensor] = {}

    def note(self, edge: Edge, jacobian: Jacobian) -> None:
        """The rows of an input arrived."""
        leaf = self.graph.targets[edge]
        factors = [one for f in jacobian.factors for one in by_loss([f.upright(leaf.shape)])]
        if _whole(leaf.shape, factors):
            parts = [self._chunk(factors, lo, hi) for lo, hi in chunks(factors[0].shape, self._m)]
            update = factors[0].back(torch.cat(parts).unsqueeze(0))[0]
        else:
            given = [f.dense if isinstance(f, GivenRows) else f for f in factors]
            rows = [(f.owners, f.materialise()) for f in given]
            update = self._combined([(r, torch.view_as_real(v) if v.is_complex() else v) for r, v in rows])
            update = torch.view_as_complex(update.view(-1, 2)) if leaf.is_complex() else update
        self.updates[edge] = update.to(leaf.dtype).reshape(leaf.shape)

    def _chunk(self, factors: Sequence[Factor], lo: int, hi: int) -> Tensor:
        update = self._combined([(f.owners, f.rows(lo, hi, f.dtype)) for f in factors])
        return update.view(hi - lo, -1)

    def _combined(self, parts: Sequence[tuple[Owners, Tensor]]) -> Tensor:
        """Combine the rows [R, *] of several uses, added up by their losses."""
        first = parts[0][1]
        J = torch.zeros(self._m, first[0].numel(), dtype=first.dtype, device=first.device)
        for owners, values in parts:
            add_rows(J, owners, values.reshape(len(values), -1))
        return self._combine(J)

    def gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Each input with its update; where nothing arrived, that of zeros."""
        for edge, leaf in self.graph.targets.items():
            if edge not in self.updates:
                self.updates[edge] = self._combine(leaf.new_zeros(self._m, leaf.numel())).view(leaf.shape)
        return [(self.graph.targets[edge], update) for edge, update in self.updates.items()]


def _whole(shape: Sequence[int], factors: Sequence[Factor]) -> bool:
    """Returns True if all factors are products that speak of the whole parameter in one order."""
    if any(isinstance(f, GivenRows) for f in factors) or math.prod(factors[0].shape) != math.prod(shape):
        return False
    regions = {f.region(shape) for f in factors}
    return len(regions) == 1 and None not in regions and len({f.shape for f in factors}) == 1
