"""The rectangle `J J'^T` of two vectors of losses: the rows of the first are kept until those of the second come."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import compute
from gramjd.engine.autograd import in_graph_task
from gramjd.engine.cotangent import Cotangent, densify
from gramjd.engine.factor import Factor, Gathered, Outer, slabs
from gramjd.engine.graph import Edge, Graph, Selected
from gramjd.engine.layout import Rows, placed
from gramjd.engine.node import Loss
from gramjd.engine.parameter import region_of, separate, upright
from gramjd.engine.walk import Budget, OverBudgetError, Walk, seeds_for
from gramjd.errors import BudgetError, InputError, in_bytes
from gramjd.kernels.cross import cross_gathered, cross_outer
from gramjd.kernels.gathered import cross_outer_gathered
from gramjd.kernels.products import add_product, product

Arrived = tuple[list[Cotangent], list[Factor]]


def rectangle(
    losses: Sequence[Tensor],
    others: Sequence[Tensor],
    inputs: Sequence[Tensor] | None,
    dtype: torch.dtype | None,
    memory_budget: int | None,
) -> Tensor:
    """`J J'^T` [m, m'] for the Jacobians J of `losses` and J' of `others`; both graphs stay usable."""
    sides = [compute.read(side, inputs, missing_ok=True) for side in (losses, others)]
    _check_reached(inputs, sides)
    wide = [compute.accumulation_dtype(side, graph, dtype) for side, graph in zip((losses, others), sides, strict=True)]
    counts = [sum(loss.numel() for loss in side) for side in (losses, others)]
    total = torch.zeros(counts, dtype=torch.promote_types(*wide), device=losses[0].device)
    held: dict[int, Arrived] = {}

    def keep(edge: Edge, groups: list[Cotangent], factors: list[Factor]) -> None:
        held[id(sides[0].targets[edge])] = (groups, factors)

    def meet(edge: Edge, groups: list[Cotangent], factors: list[Factor]) -> None:
        target = sides[1].targets[edge]
        if id(target) in held:
            _add(total, target.shape, held.pop(id(target)), (groups, factors))

    limit = compute.budget_for(losses, memory_budget)
    noticed = [
        *_walk(sides[0], losses, keep, Budget(limit, temporaries=memory_budget)),
        *_walk(sides[1], others, meet, Budget(limit, temporaries=memory_budget)),
    ]
    compute.notify(noticed)
    return total


def _check_reached(inputs: Sequence[Tensor] | None, sides: Sequence[Graph]) -> None:
    given = () if inputs is None or (isinstance(inputs, Selected) and inputs.optional) else inputs
    for place, tensor in enumerate(given):
        reached = [g for g in sides if any(t is tensor and edge[0] in g.edges for edge, t in g.targets.items())]
        if not reached:
            raise InputError(
                f"input {place} (shape {tuple(tensor.shape)}) is reached neither by `losses` nor by `other`: remove it "
                "from `inputs`, or compute the losses from it"
            )


def _walk(
    graph: Graph, losses: Sequence[Tensor], note: Callable[[Edge, list[Cotangent], list[Factor]], None], budget: Budget
) -> list[Loss]:
    walk = Walk(graph, note, budget)
    try:
        in_graph_task(lambda: walk.run(seeds_for(losses)))
    except OverBudgetError:
        needed = compute.dense_peak(graph, losses)
        raise BudgetError(
            f"the rows of all losses of one side need {in_bytes(needed)}, but memory_budget is "
            f"{in_bytes(budget.limit)}: raise it to at least {needed} bytes, or ask for fewer losses at a time"
        ) from None
    return walk.dense


def _add(total: Tensor, shape: Sequence[int], mine: Arrived, theirs: Arrived) -> None:
    """`total += J_p J'_p^T` for a parameter of `shape`, each side the sum of its groups and factors."""
    if mine[0] or theirs[0]:
        pairs = itertools.product(_rows(mine, total.dtype), _rows(theirs, total.dtype))
        for (rows, J), (columns, H) in pairs:
            _place(total, rows, columns, product(J, H.T))
        return
    for f, h in itertools.product(mine[1], theirs[1]):
        block = _inner(upright(f, shape), upright(h, shape), shape, total.dtype)
        if block is not None:
            _place(total, f.rows, h.rows, block)


def _rows(side: Arrived, dtype: torch.dtype) -> list[tuple[Rows, Tensor]]:
    given = [densify(g, None) for g in side[0]]
    found = [(g.layout.rows, g.values) for g in given] + [(f.rows, f.materialise(dtype)) for f in side[1]]
    real = [(rows, torch.view_as_real(values) if values.is_complex() else values) for rows, values in found]
    return [(rows, _flat(values).to(dtype)) for rows, values in real]


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(len(rows), -1)


def _inner(f: Factor, h: Factor, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """Inner products of the rows of two factors; None if they lie in different parts of the parameter."""
    regions = [region_of(f, shape), region_of(h, shape)]
    if regions[0] is None or regions[0] != regions[1] or f.shape != h.shape:
        if separate(regions) and regions[0] != regions[1]:
            return None
        return product(_flat(f.materialise(dtype)), _flat(h.materialise(dtype)).T)
    if isinstance(f, Outer) and isinstance(h, Outer):
        turned = h if h.flipped == f.flipped else h.turned()
        if turned is not None:
            return cross_outer(f.x, f.c, turned.x, turned.c, dtype)
    if isinstance(f, Gathered) and isinstance(h, Gathered):
        return cross_gathered(f.ids, f.c, h.ids, h.c, dtype)
    if isinstance(f, Outer) and isinstance(h, Gathered) and not f.flipped:
        return cross_outer_gathered(f.x[0], f.c[:, 0], h.ids, h.c, dtype)
    if isinstance(f, Gathered) and isinstance(h, Outer) and not h.flipped:
        return cross_outer_gathered(h.x[0], h.c[:, 0], f.ids, f.c, dtype).T
    block = torch.zeros(len(f.rows), len(h.rows), dtype=dtype, device=f.device)
    for lo, hi in slabs(f.shape, len(f.rows) + len(h.rows)):
        add_product(block, _flat(f.slab(lo, hi, dtype)), _flat(h.slab(lo, hi, dtype)).T)
    return block


def _place(total: Tensor, rows: Rows, columns: Rows, block: Tensor) -> None:
    """`total[rows, columns] += block`; -1 is nobody."""
    live = [placed(np.flatnonzero(side >= 0), block.device) for side in (rows, columns)]
    owner = [placed(side[side >= 0], total.device) for side in (rows, columns)]
    block = block.index_select(0, live[0]).index_select(1, live[1]).to(device=total.device, dtype=total.dtype)
    total.index_put_((owner[0][:, None], owner[1][None, :]), block, accumulate=True)
