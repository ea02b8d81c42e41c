"""What the walk would do, without doing it: one line a use of a parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from gramjd.engine import compute
from gramjd.engine._torch import uncompiled
from gramjd.engine.choice import choose
from gramjd.engine.factor import Factor
from gramjd.engine.graph import Edge
from gramjd.engine.memory import MemoryLimits
from gramjd.engine.node import LostAxis
from gramjd.engine.notices import cure_of
from gramjd.engine.parameter import Jacobian, plan_of
from gramjd.engine.segments import described
from gramjd.errors import graph_errors
from gramjd.kernels.products import current_products
from gramjd.legend import legend, of_routes, of_rows
from gramjd.losses import Inputs, Losses, as_inputs, as_losses, names_of
from gramjd.text_table import aligned

UNNAMED = "input "  # and a number


@dataclass(frozen=True)
class Use:
    """One use of a parameter: where its rows come from and how they enter the Gramian."""

    parameter: str
    shape: tuple[int, ...]
    operation: str
    rows: str
    route: str
    operations: int
    bytes: int


@dataclass(frozen=True)
class Sent:
    """What this rank sends to others for a parameter's share of G, and how: as "factors" or as "rows"."""

    parameter: str
    way: str
    bytes: int


@dataclass(frozen=True)
class Explanation:
    """The plan of a Gramian: `print` it, or take `to_dict()`.

    `dense` lists the operations at which the last batch axis was lost, with the reason; empty when every layer is
    reached with one row's worth of memory. `operations` are floating-point operations of the Gramian's products;
    `row_bytes` the most that stacked rows take at once, beyond what a plain backward pass holds; `products` the library
    of large float32 products on the CPU, with the reason for it. The table is that of a walk; `way` is "walk", or
    "passes" where a plain backward pass per loss is made instead, with the reason. With a `group`, `sent` is what this
    rank sends for each parameter, and `all_losses` how many losses G is of.
    """

    losses: int
    uses: tuple[Use, ...]
    dense: tuple[LostAxis, ...]
    row_bytes: int
    products: str
    way: str = ""
    sent: tuple[Sent, ...] = ()
    all_losses: int = 0

    @property
    def operations(self) -> int:
        """Floating-point operations of all products."""
        return sum(use.operations for use in self.uses)

    @property
    def bytes(self) -> int:
        """Bytes of all cotangents that factors keep until a parameter's last use."""
        return sum(use.bytes for use in self.uses)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self) | {"operations": self.operations, "bytes": self.bytes}

    def __str__(self) -> str:
        """The table."""
        head = ("parameter", "shape", "operation", "rows", "route", "operations", "bytes")
        body = [
            (u.parameter, str(list(u.shape)), u.operation, u.rows, u.route, _short(u.operations), _short(u.bytes, "B"))
            for u in self.uses
        ]
        total = ("total", f"m = {self.losses}", "", "", "", _short(self.operations), _short(self.bytes, "B"))
        places = [f"dense rows from {lost.operation} on: it {lost.reason}; {cure_of(lost)}" for lost in self.dense]
        tail = places or ["no dense rows: no layer mixes losses that were apart"]
        tail += [
            f"stacked rows: {_short(self.row_bytes, 'B')} at most, beyond plain training",
            f"products: {self.products}",
        ]
        tail += [_exchange(self.sent, self.all_losses)] if self.all_losses else []
        return "\n".join([aligned([head, *body, total], total=True), self._legend(), f"way: {self.way}", *tail])

    def _legend(self) -> str:
        unnamed = any(use.parameter.startswith(UNNAMED) for use in self.uses)
        return legend(
            {
                "parameter": "numbers stand for names: pass inputs=model to see them" if unnamed else "",
                "rows": of_rows(use.rows for use in self.uses),
                "route": of_routes(use.route for use in self.uses),
                "operations": "floating-point operations of these products",
                "bytes": "what is kept of the walk until the parameter's last use",
            }
        )


def _exchange(sent: Sequence[Sent], losses: int) -> str:
    ways = [f"{sum(s.way == way for s in sent)} parameters by {way}" for way in ("factors", "rows")]
    total = _short(sum(s.bytes for s in sent), "B")
    return (
        f"between ranks, for G of {losses} losses: {' and '.join(ways)}; this rank sends {total}, then G and gradients"
    )


def _short(number: int, unit: str = "") -> str:
    power = 0 if number < 1000 else min(5, int(math.log10(number) // 3))
    return f"{number / 1000**power:.3g} {' kMGTP'[power].strip()}{unit}".rstrip()


@uncompiled
def explain(losses: Losses, inputs: Inputs = None, *, group: Any = None, across: str = "stack") -> Explanation:
    """Which operation every parameter is used by, where its batch axis was found, and what its share of G costs.

    Args:
        losses: as in `gramian`.
        inputs: as in `gramian`; a module or a mapping from names puts names in the table.
        group: as in `gram_backward`: what crosses the wire is told as well. All ranks make this call.
        across: as in `gram_backward`.

    Returns:
        An Explanation. Nothing is computed but index tensors read; the graph stays usable.

    Raises:
        LossError, InputError, GraphError, BackendError: as `gramian` does.
        RankError: with a `group`, as `gram_backward` does.

    >>> import torch
    >>> layer = torch.nn.Linear(3, 2)
    >>> plan = explain(layer(torch.ones(5, 3)).square().sum(1))
    >>> [(use.operation, use.rows, use.route) for use in plan.uses]
    [('AddmmBackward0', 'batch axis 5, 1 row', 'product'), ('AddmmBackward0', '5 rows', 'rows')]
    >>> plan.dense
    ()
    """
    names = names_of(inputs)
    uses: dict[Edge, list[Use]] = {}

    def note(edge: Edge, jacobian: Jacobian) -> None:
        uses[edge] = [_use(factor, device, dtype) for factor in jacobian.factors]

    found = as_losses(losses)
    with graph_errors():
        graph = compute.read(found, as_inputs(inputs), spread=True)
        if graph.sharded is not None:
            names |= {whole: names[id(shard)] for whole, shard in graph.sharded.shards.items() if id(shard) in names}
        device, dtype = found[0].device.type, compute.accumulation_dtype(found, graph, None)
        dense, peak = compute.plan(graph, found, note)
        choice = choose(graph, found, MemoryLimits.of(found, None), list(graph.targets))
    named = tuple(
        replace(use, parameter=names.get(id(target), f"{UNNAMED}{place}"), shape=tuple(target.shape))
        for place, (edge, target) in enumerate(graph.targets.items())
        for use in uses.get(edge, ())
    )
    m = sum(loss.numel() for loss in found)
    plan = Explanation(m, named, tuple(dict.fromkeys(dense)), peak, str(current_products()), str(choice))
    if group is None:
        return plan
    from gramjd.distributed.step import exchanged

    everyone, exchange = exchanged(losses, group, inputs, across)
    sent = [Sent(names.get(id(p), f"parameter {one.place}"), one.way, one.bytes) for p, one in exchange]
    return replace(plan, sent=tuple(sent), all_losses=everyone)


def _use(factor: Factor, device: str, dtype: torch.dtype) -> Use:
    """All but which parameter it is of."""
    route, operations = plan_of(factor, device, dtype)
    return Use("", (), factor.operation, described(factor), route, operations, factor.nbytes)


__all__: Sequence[str] = ["Explanation", "Use", "explain"]
