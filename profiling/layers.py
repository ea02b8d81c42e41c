"""Where the Gramian's time and memory go, parameter by parameter: as planned beside as measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from gramjd._explain import Explanation, explain
from gramjd.engine import compute
from gramjd.engine.consumers.gramian import Gramian
from gramjd.engine.graph import Edge
from gramjd.engine.memory import MemoryLimits, Meter
from gramjd.engine.notices import cure_of
from gramjd.engine.parameter import Jacobian
from gramjd.engine.walk import walked
from gramjd.legend import legend, of_routes, of_rows
from gramjd.losses import as_losses
from gramjd.profiling.target import Work
from gramjd.text_table import aligned

# What can be done about a line, by the route that its share takes.
ADVICE = {
    "pairwise": "its cost grows with the square of the positions: use fewer, or leave it out with gramian_inputs=",
    "rows": "the gradients of all samples are formed chunk by chunk: leave it out with gramian_inputs= if its part of "
    "the conflict matters little",
    "shared": "one row a loss over a shared batch: a smaller batch, or fewer losses at a time",
    "unique": "the rows of all ids in use are formed: fewer of them, or leave the table out with gramian_inputs=",
    "product": "already the cheapest form: only fewer losses or a smaller layer would help",
    "own slices": "already the cheapest form",
}


@dataclass(frozen=True)
class Layer:
    """One parameter: what `explain` plans for its uses, and the time that adding its share to G took."""

    parameter: str
    route: str
    rows: str
    operations: int
    bytes: int
    milliseconds: float
    share: float


@dataclass(frozen=True)
class Layers:
    """The layer view: `print` it. `walk_milliseconds` is the whole walk, shares included; `advice` the worst lines'."""

    m: int
    walk_milliseconds: float
    layers: tuple[Layer, ...]
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        """The table, the slowest parameter first, and what could be done about the three worst."""
        total = max(1, sum(layer.operations for layer in self.layers))
        head = ("parameter", "route", "rows", "MFLOP", "share", "kept, MB", "ms", "share", "GFLOP/s")
        body = [
            (
                *(layer.parameter, layer.route, layer.rows, f"{layer.operations / 1e6:.3g}"),
                *(f"{layer.operations / total:.0%}", f"{layer.bytes / 1e6:.3g}", f"{layer.milliseconds:.3g}"),
                *(f"{layer.share:.0%}", f"{layer.operations / max(layer.milliseconds, 1e-6) / 1e6:.3g}"),
            )
            for layer in self.layers
        ]
        own = sum(layer.milliseconds for layer in self.layers)
        rest = f"all shares {own:.3g} ms; the walk in between {max(0.0, self.walk_milliseconds - own):.3g} ms"
        return "\n".join([aligned([head, *body], "lllr"), self._legend(), rest, *self.advice])

    def _legend(self) -> str:
        return legend(
            {
                "route": of_routes(layer.route for layer in self.layers),
                "rows": of_rows(layer.rows for layer in self.layers),
                "MFLOP": "millions of floating-point operations of the products, and their share of all",
                "kept": "what is held of the walk until the parameter's last use",
                "ms": "milliseconds until its share of G was added, and their share of all; a busy machine "
                "makes them longer",
            }
        )


def layers(work: Work, repeats: int = 5) -> Layers:
    """Planned operations and bytes and measured time of every parameter's share of the Gramian.

    Args:
        work: from `gramjd.profiling.target.build`.
        repeats: walks timed, of which the median counts; a first one is not.
    """
    plan = explain(work.losses(), work.parameters)
    walks = [_timed(work) for _ in range(repeats + 1)][1:]
    spent = {name: 1e3 * median(shares.get(name, 0.0) for _, shares in walks) for name in work.parameters}
    everything = max(1e-9, sum(spent.values()))
    found = [_layer(plan, name, spent[name], spent[name] / everything) for name in work.parameters]
    ordered = sorted(found, key=lambda layer: -layer.milliseconds)
    worst = [layer for layer in ordered if layer.milliseconds][:3]
    return Layers(
        work.m,
        1e3 * median(whole for whole, _ in walks),
        tuple(ordered),
        tuple(_advice(plan, layer) for layer in worst),
    )


def _timed(work: Work) -> tuple[float, dict[str, float]]:
    """Seconds of one walk, and of adding each parameter's share."""
    losses = as_losses(work.losses())
    graph = compute.read(losses, list(work.parameters.values()), missing_ok=True)
    names = {id(p): name for name, p in work.parameters.items()}
    total = Gramian(work.m, losses[0].device, compute.accumulation_dtype(losses, graph, None))
    spent: dict[str, float] = {}

    def now() -> float:
        if work.device.type == "cuda":
            torch.cuda.synchronize(work.device)
        return time.perf_counter()

    def add(edge: Edge, jacobian: Jacobian) -> None:
        start = now()
        total.add_share(jacobian)
        name = names[id(graph.targets[edge])]
        spent[name] = spent.get(name, 0.0) + now() - start

    start = now()
    walked(graph, losses, add, Meter(MemoryLimits.of(losses, None)))
    return now() - start, spent


def _layer(plan: Explanation, name: str, milliseconds: float, share: float) -> Layer:
    uses = [use for use in plan.uses if use.parameter == name]
    return Layer(
        name,
        _joined([use.route for use in uses]),
        _joined([use.rows for use in uses]),
        sum(use.operations for use in uses),
        sum(use.bytes for use in uses),
        milliseconds,
        share,
    )


def _joined(texts: Sequence[str]) -> str:
    return " + ".join(dict.fromkeys(texts)) or "not reached"


def _advice(plan: Explanation, layer: Layer) -> str:
    lost = plan.dense[-1] if plan.dense and "batch axis" not in layer.rows else None
    what = (
        f"each loss has a row of its own since {lost.operation} ({lost.reason}): {cure_of(lost)}"
        if lost is not None
        else ADVICE.get(layer.route.split(" + ")[-1], "uses of several kinds meet: give them parameters of their own")
    )
    return f"{layer.parameter} ({layer.share:.0%}): {what}"
