"""Which structures of graphs were walked before, and the tapes of those that come again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gramjd.engine import rules
from gramjd.engine.graph import Edge, Graph
from gramjd.engine.sums import Sum
from gramjd.engine.tape import Recorder, Tape
from gramjd.engine.task import in_graph_task
from gramjd.engine.visit import Loss
from gramjd.engine.walk import Budget, add_shares
from gramjd.kernels.dispatch import current_backend

# Per structure: None once it was seen, then its tape, or False where none can be made.
_known: OrderedDict[Hashable, Tape | bool | None] = OrderedDict()
_MOST = 64


def forget() -> None:
    """Drop all tapes."""
    _known.clear()


def add_shares_again(graph: Graph, losses: Sequence[Tensor], totals: Mapping[Edge, Sum], budget: Budget) -> list[Loss]:
    """As `add_shares`: the first time by a walk, the second by one that is recorded, from then on from its tape.

    Walks with stacked rows spend their time on numbers and depend on the budget; on other devices than the CPU a
    recording would miss kernels that are no torch functions. Those are walked every time.
    """
    key = _structure(graph, losses, totals) if _steady(graph, losses) else None
    entry = _known.get(key, None) if key is not None else False
    if isinstance(entry, Tape):
        _known.move_to_end(key)
        if _replayed(entry, graph, totals):
            return []
        noticed = add_shares(graph, losses, totals, budget)
        # Not before: where the walk fails as well, it was no fault of the tape.
        _known[key] = False
        return noticed
    if entry is False:
        return add_shares(graph, losses, totals, budget)
    if key not in _known:
        _known[key] = None
        while len(_known) > _MOST:
            _known.popitem(last=False)
        return add_shares(graph, losses, totals, budget)
    recorder = Recorder(graph.children, [total.value for total in _distinct(totals)])
    noticed = add_shares(graph, losses, totals, budget, within=recorder)
    if noticed or budget.peak:
        recorder.refuse("stacked rows")
    _known[key] = recorder.tape() or False
    return noticed


def _distinct(totals: Mapping[Edge, Sum]) -> list[Sum]:
    return list(dict.fromkeys(totals.values()))


def _steady(graph: Graph, losses: Sequence[Tensor]) -> bool:
    """Whether what the walk does depends on nothing but the structure, as far as can be told beforehand."""
    if graph.hooks.edges or graph.hooks.nodes or rules.CUSTOM & {graph.name(node) for node in graph.wanted}:
        return False
    return all(t.device.type == "cpu" for t in (*losses, *graph.targets.values()))


def _replayed(tape: Tape, graph: Graph, totals: Mapping[Edge, Sum]) -> bool:
    """Whether the tape ran to its end; if not, the sums are zero again, and a walk will say what is wrong."""
    sums = _distinct(totals)
    nodes = list(graph.children)
    try:
        in_graph_task(lambda: tape.replay(nodes, [total.value for total in sums]))
    except Exception:
        for total in sums:
            total.value.zero_()
        return False
    return True


def _structure(graph: Graph, losses: Sequence[Tensor], totals: Mapping[Edge, Sum]) -> Hashable:
    """Everything that decides what a walk does, except the numbers that nodes saved."""
    place: dict[Any, int] = {None: -1}
    for number, node in enumerate(graph.children):
        place[node] = number
    nodes = tuple(
        (
            graph.name(node),
            tuple([(place[child], nr) for child, nr in edges]),
            tuple(graph.metadata(node)) if node in graph.wanted else (),
        )
        for node, edges in graph.edges.items()
    )
    sums = {total: number for number, total in enumerate(_distinct(totals))}
    return (
        nodes,
        tuple((place[node], nr) for node, nr in graph.roots),
        tuple((place[node], nr, sums[total]) for (node, nr), total in totals.items()),
        tuple((type(total), total.m, total.dtype) for total in sums),
        tuple((loss.shape, loss.dtype) for loss in losses),
        (
            current_backend(),
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
        ),
    )
