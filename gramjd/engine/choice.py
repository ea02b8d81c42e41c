"""The choice between a walk and passes: seconds of each by the measured constants of a device, and no clock.

A node costs a walk `WALK` calls of an operation and a pass `CALL`, which is Python for the most part; what operations
compute and move comes on top. A choice depends on shapes, constants, budget and backend alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.engine import rules
from gramjd.engine.graph import Edge, Graph
from gramjd.engine.memory import MemoryLimits
from gramjd.engine.survey import Survey, survey_of
from gramjd.kernels import cost
from gramjd.kernels.tracing import tracing

# Calls of an operation that the visit of a node takes, in a walk and in a pass. Measured on networks so small that
# operations are calls and nothing else; `python -m gramjd.profiling.bench few --overheads` prints them.
WALK, CALL = 55.0, 7.0
# For more losses nothing is surveyed: passes would have to be that much quicker per node.
FEW = 16
# Bytes of rows that passes may hold at any rate; more only where plain training holds as much.
ALWAYS = 32 << 20

WAYS = ("walk", "passes")
_only: ContextVar[str | None] = ContextVar("gramjd_way", default=None)


@contextmanager
def only(way: str | None) -> Iterator[None]:
    """Within the block go one way wherever it can be gone; None: the quicker one. For tests."""
    token = _only.set(way)
    try:
        yield
    finally:
        _only.reset(token)


class Choice(NamedTuple):
    """The way that is gone and why, with the survey that it was chosen by, if there was one."""

    passes: bool
    reason: str
    survey: Survey | None = None

    def __str__(self) -> str:
        """The way and the reason."""
        return f"{'passes' if self.passes else 'walk'}: {self.reason}"


def choose(
    graph: Graph, losses: Sequence[Tensor], limits: MemoryLimits, counted: Sequence[Edge], reuse: bool = False
) -> Choice:
    """The way to the Gramian over the inputs in `counted`; `reuse`: the update is made of what it computes."""
    m, way = sum(loss.numel() for loss in losses), _only.get()
    if way == "walk":
        return Choice(False, "asked for")
    if tracing() is not None:
        return Choice(False, "a step is traced")
    if torch.is_anomaly_enabled():
        return Choice(False, "in anomaly mode a walk looks at what each node returns")
    if graph.hooks.edges or graph.hooks.nodes:
        return Choice(False, "there are hooks")
    if graph.spread:
        return Choice(False, "the model is spread over processes")
    if m > FEW and way is None:
        return Choice(False, f"more than {FEW} losses")
    survey = survey_of(graph, losses)
    if _ruled(survey):
        return Choice(False, "a rule says what a custom function does", survey)
    if survey.recomputes and way is None:
        return Choice(False, "saved tensors are brought back when they are read, once per pass", survey)
    needed = row_bytes(survey, graph, counted)
    most = min(limits.rows, math.inf if way else max(ALWAYS, graph.structure.plain_bytes))
    if needed > most:
        return Choice(False, f"rows take {needed} bytes, more than the {int(most)} allowed", survey)
    if way == "passes":
        return Choice(True, "asked for", survey)
    walk, passes = seconds(survey, graph, losses, counted, reuse)
    told = f"{m} passes take about {_short(passes)}, a walk {_short(walk)}"
    return Choice(passes < walk, told, survey)


def _ruled(survey: Survey) -> bool:
    """Returns True if a rule takes the place of code: of a user's, or of what acts on its own in a backward pass."""
    return not rules.CUSTOM.keys().isdisjoint(survey.names) or not rules.TABLE.keys().isdisjoint(survey.code)


def row_bytes(survey: Survey, graph: Graph, counted: Sequence[Edge]) -> int:
    """Bytes of the rows of these inputs."""
    number, outputs = graph.number, survey.structure.outputs
    return sum(
        survey.reached[n].bit_count() * math.prod(outputs[n][nr].shape) * outputs[n][nr].dtype.itemsize
        for n, nr in ((number[node], nr) for node, nr in counted)
        if survey.reached[n]
    )


def seconds(
    survey: Survey, graph: Graph, losses: Sequence[Tensor], counted: Sequence[Edge], reuse: bool
) -> tuple[float, float]:
    """What a walk takes and what passes take, without the backward pass that may follow either."""
    places = tuple([(graph.number[node], nr) for node, nr in counted])
    known = cost.constants_of(losses[0].device.type, losses[0].dtype)
    key = known, places, reuse
    if key not in survey.seconds:
        survey.seconds[key] = _walk(survey, known, places, reuse), _passes(survey, known, places)
    found: tuple[float, float] = survey.seconds[key]
    return found


def _walk(survey: Survey, known: cost.Constants, places: Sequence[tuple[int, int]], reuse: bool) -> float:
    on, own = survey.walked, survey.own.operations * reuse + sum(survey.grams.get(place, 0.0) for place in places)
    # Gradients of activations are single large products; those of a Gramian often come in batches, by PyTorch's own.
    products = on.operations / (known.onednn_flops or known.flops) + own / known.flops
    return len(survey.structure.order) * WALK * known.call + products + on.elements / known.elements


def _passes(survey: Survey, known: cost.Constants, places: Sequence[tuple[int, int]]) -> float:
    prices, outputs = cost.Prices(known), survey.structure.outputs
    numbers: dict[int, int] = {}
    for n, nr in places:
        losses = survey.reached[n].bit_count()
        numbers[losses] = numbers.get(losses, 0) + math.prod(outputs[n][nr].shape) if losses else 0
    grams = sum(prices.gram(R, d) + prices.passes(3 * R * d, 0) for R, d in numbers.items() if R)
    called = survey.called
    return survey.calls * CALL * known.call + called.operations / known.flops + called.elements / known.elements + grams


def _short(value: float) -> str:
    return f"{value * 1e3:.2g} ms"
