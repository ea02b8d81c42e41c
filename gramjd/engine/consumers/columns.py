"""J itself, a few columns at a time: for aggregators that look at coordinates and not at inner products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gramjd.engine.cotangent import Cotangent, densify
from gramjd.engine.factor import Factor, slabs
from gramjd.engine.graph import Edge, Graph
from gramjd.engine.layout import Rows, placed
from gramjd.engine.parameter import region_of, upright

Combine = Callable[[Tensor], Tensor]


class Columns:
    """Applies `combine` ([m, d] columns of J to their update [d]) to each input as soon as its rows are complete."""

    def __init__(self, graph: Graph, m: int, combine: Combine) -> None:  # noqa: D107
        self.graph, self._m, self._combine = graph, m, combine
        self.updates: dict[Edge, Tensor] = {}

    def note(self, edge: Edge, groups: list[Cotangent], factors: list[Factor]) -> None:
        """The rows of an input arrived."""
        leaf = self.graph.targets[edge]
        factors = [upright(f, leaf.shape) for f in factors]
        if _whole(leaf.shape, factors) and not groups:
            parts = [self._slab(factors, lo, hi) for lo, hi in slabs(factors[0].shape, self._m)]
            update = factors[0].back(torch.cat(parts).unsqueeze(0))[0]
        else:
            given = [densify(g, None) for g in groups]
            rows = [(g.layout.rows, g.values) for g in given] + [(f.rows, f.materialise()) for f in factors]
            update = self._combined([(r, torch.view_as_real(v) if v.is_complex() else v) for r, v in rows])
            update = torch.view_as_complex(update.view(-1, 2)) if leaf.is_complex() else update
        self.updates[edge] = update.to(leaf.dtype).reshape(leaf.shape)

    def _slab(self, factors: Sequence[Factor], lo: int, hi: int) -> Tensor:
        update = self._combined([(f.rows, f.slab(lo, hi, f.dtype)) for f in factors])
        return update.view(hi - lo, -1)

    def _combined(self, parts: Sequence[tuple[Rows, Tensor]]) -> Tensor:
        """Combine the rows [R, *] of several uses, added up by their losses."""
        first = parts[0][1]
        J = torch.zeros(self._m, first[0].numel(), dtype=first.dtype, device=first.device)
        for rows, values in parts:
            live = placed(np.flatnonzero(rows >= 0), values.device)
            owner = placed(rows[rows >= 0], values.device)
            J.index_add_(0, owner, values.reshape(len(values), -1).index_select(0, live).to(J.dtype))
        return self._combine(J)

    def gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Each input with its update; where nothing arrived, that of zeros."""
        for edge, leaf in self.graph.targets.items():
            if edge not in self.updates:
                self.updates[edge] = self._combine(leaf.new_zeros(self._m, leaf.numel())).view(leaf.shape)
        return [(self.graph.targets[edge], update) for edge, update in self.updates.items()]


def _whole(shape: Sequence[int], factors: Sequence[Factor]) -> bool:
    """Whether all factors speak of the whole parameter in one order."""
    if not factors or math.prod(factors[0].shape) != math.prod(shape):
        return False
    regions = {region_of(f, shape) for f in factors}
    return len(regions) == 1 and None not in regions and len({f.shape for f in factors}) == 1
