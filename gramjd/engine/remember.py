"""Which structures of graphs were walked before, and the tapes of those that come again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gramjd.engine import rules
from gramjd.engine._torch import outputs_of
from gramjd.engine.autograd import in_graph_task
from gramjd.engine.consumers.gramian import Sum
from gramjd.engine.consumers.update import Kept
from gramjd.engine.graph import Edge, Graph
from gramjd.engine.node import Loss
from gramjd.engine.record import Recorder
from gramjd.engine.tape import Replay, Tape
from gramjd.engine.walk import Budget, add_shares
from gramjd.kernels.dispatch import current_backend
from gramjd.kernels.products import library


class Recorded(NamedTuple):
    """A tape, and what it keeps for an update: the places of the inputs among all, and bytes."""

    tape: Tape
    kept: tuple[int, ...]
    nbytes: int


# Per structure: None once it was seen, then its tape, or False where none can be made.
_known: OrderedDict[Hashable, Recorded | bool | None] = OrderedDict()
_MOST = 64


def forget() -> None:
    """Drop all tapes."""
    _known.clear()


def add_shares_again(
    graph: Graph, losses: Sequence[Tensor], totals: Mapping[Edge, Sum], budget: Budget, kept: Kept | None = None
) -> list[Loss]:
    """As `add_shares`: the first time by a walk, the second by one that is recorded, from then on from its tape.

    Walks with stacked rows spend their time on numbers and depend on the budget; on other devices than the CPU a
    recording would miss kernels that are no torch functions. Those are walked every time.
    """
    also = None if kept is None else kept.note
    key = (_structure(graph, losses, totals, kept), budget.temporaries) if _steady(graph, losses) else None
    entry = _known.get(key, None) if key is not None else False
    if isinstance(entry, Recorded) and (kept is None or entry.nbytes <= kept.limit):
        # Another thread may have dropped it by now.
        with suppress(KeyError):
            _known.move_to_end(key)
        if _replayed(entry, graph, totals, kept):
            return []
        noticed = add_shares(graph, losses, totals, budget, also=also)
        # Not before: where the walk fails as well, it was no fault of the tape.
        _known[key] = False
        return noticed
    if entry is not None:
        return add_shares(graph, losses, totals, budget, also=also)
    if key not in _known:
        _known[key] = None
        while len(_known) > _MOST:
            _known.popitem(last=False)
        return add_shares(graph, losses, totals, budget, also=also)
    recorder = Recorder(graph.edges)
    recorder.give(*[total.value for total in _distinct(totals)])
    noticed = add_shares(graph, losses, totals, budget, also=also, within=recorder)
    if noticed or budget.peak:
        recorder.refuse("stacked rows")
    if kept is None:
        _store(key, recorder, (), 0)
    else:
        _record_update(key, recorder, graph, kept)
    return noticed


def _record_update(key: Hashable, recorder: Recorder, graph: Graph, kept: Kept) -> None:
    """Let the recording go on when the update is asked for."""
    if len(kept.edges) < sum(map(kept.wants, graph.targets)):
        recorder.refuse("too little memory to keep all rows")
    places = {edge: place for place, edge in enumerate(graph.targets)}
    combine = kept.combine

    def record(w: Tensor) -> list[Tensor]:
        with recorder:
            recorder.give(w)
            found = combine(w)
        recorder.returns(found)
        _store(key, recorder, tuple([places[edge] for edge in kept.edges]), kept.nbytes)
        return found

    kept.combine = record


def _store(key: Hashable, recorder: Recorder, kept: tuple[int, ...], nbytes: int) -> None:
    tape = recorder.tape()
    _known[key] = False if tape is None else Recorded(tape, kept, nbytes)


def _distinct(totals: Mapping[Edge, Sum]) -> list[Sum]:
    return list(dict.fromkeys(totals.values()))


def _steady(graph: Graph, losses: Sequence[Tensor]) -> bool:
    """Whether what the walk does depends on nothing but the structure, as far as can be told beforehand."""
    if graph.hooks.edges or graph.hooks.nodes or not rules.CUSTOM.isdisjoint(graph.names.values()):
        return False
    return all(t.device.type == "cpu" for t in (*losses, *graph.targets.values()))


def _replayed(entry: Recorded, graph: Graph, totals: Mapping[Edge, Sum], kept: Kept | None) -> bool:
    """Whether the tape ran to its end; if not, the sums are zero again, and a walk will say what is wrong."""
    sums = _distinct(totals)
    replay = Replay(entry.tape, list(graph.edges))
    try:
        in_graph_task(lambda: replay.run(*[total.value for total in sums]))
    except Exception:
        for total in sums:
            total.value.zero_()
        return False
    if kept is not None:
        edges = list(graph.targets)
        kept.edges, kept.nbytes = [edges[place] for place in entry.kept], entry.nbytes
        kept.combine = partial(_replayed_update, replay, kept)
    return True


def _replayed_update(replay: Replay, kept: Kept, w: Tensor) -> list[Tensor]:
    """The update from the rest of the tape, or nothing at all: then a backward pass says what is wrong."""
    try:
        return replay.run(w)
    except Exception:
        kept.clear()
        return []


def _structure(graph: Graph, losses: Sequence[Tensor], totals: Mapping[Edge, Sum], kept: Kept | None) -> Hashable:
    """Everything that decides what a walk does, except the numbers that nodes saved."""
    place: dict[Any, int] = {node: number for number, node in enumerate(graph.edges)}
    place[None] = -1
    # One flat tuple: names tell where a node begins. A large graph is read in no time only if little is made of it.
    nodes: list[Hashable] = []
    for node, edges in graph.edges.items():
        nodes.append(graph.names[node])
        for child, nr in edges:
            nodes += place[child], nr
        for output in outputs_of(node):
            nested = output.is_nested_tensor
            nodes += nested or tuple(output.shape), output.dtype, output.device
    sums = {total: number for number, total in enumerate(_distinct(totals))}
    return (
        tuple(nodes),
        tuple([(place[node], nr) for node, nr in graph.roots]),
        tuple([(place[node], nr, sums[total]) for (node, nr), total in totals.items()]),
        tuple([(type(total), total.m, total.dtype) for total in sums]),
        tuple([(loss.shape, loss.dtype) for loss in losses]),
        None if kept is None else (kept.limit > 0, tuple([kept.wants(edge) for edge in graph.targets])),
        (current_backend(), library(), torch.get_default_dtype()),
    )
