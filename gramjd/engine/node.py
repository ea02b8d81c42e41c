"""A visit: what a rule sees of one node, and the only way in which it hands results on.

All invariants of what a rule returns are checked here, in `send`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import _torch, record
from gramjd.engine import layout as layouts
from gramjd.engine.autograd import pull
from gramjd.engine.cotangent import Cotangent, densify, materialised, reduce_to
from gramjd.engine.factor import Factor, Step
from gramjd.engine.graph import Ancestry, Graph, Metadata, Node
from gramjd.engine.hooks import at_edge, through_node
from gramjd.engine.layout import Layout, Shape
from gramjd.errors import RuleError

Message = Cotangent | Factor


@dataclass(frozen=True)
class Loss:
    """Where batch axes were lost: the operation and why."""

    operation: str
    reason: str


class UnsavedError(Exception):
    """A rule read a value that nodes of this kind do not save in this release of PyTorch."""


@dataclass
class Ledger:
    """What a walk may use and what it noticed."""

    dry: bool
    charge: Callable[[int], None]
    walk: Callable[
        [Sequence[Tensor], Sequence[Tensor | None], Mapping[int, list[Cotangent]]], list[tuple[int, Message]]
    ]
    settle: Callable[[NodeView, int], bool]
    dense: list[Loss] = field(default_factory=list)


class NodeView:
    """One node of the graph with the cotangents that arrived at its outputs."""

    def __init__(  # noqa: D107
        self, graph: Graph, node: Node, arrivals: dict[int, list[Cotangent]], ledger: Ledger, depends: Ancestry
    ):
        self.graph = graph
        self.node = node
        self.name = graph.names[node]
        self.arrivals = arrivals
        self.ledger = ledger
        self._depends = depends
        self._saved: dict[str, Any] = {}
        self.sent: list[tuple[int, Message]] = []
        self.edges: list[tuple[Node, int] | None] = [
            (child, nr) if child in graph.wanted and math.prod(graph.metadata(child)[nr].shape) else None
            for child, nr in graph.edges[node]
        ]

    # -- what the node says ------------------------------------------------------------------------------------------

    @property
    def dry(self) -> bool:
        """Whether this walk only plans: values are on the meta device and nothing is computed."""
        return self.ledger.dry

    def output(self, nr: int = 0) -> Metadata:
        """Shape and dtype of the node's output (where cotangents arrive)."""
        return self.graph.metadata(self.node)[nr]

    def input(self, edge: int) -> Metadata:
        """Shape and dtype of what an edge leads to (where cotangents go)."""
        target = self.edges[edge]
        assert target is not None, "asked for an edge that leads nowhere"
        return self.graph.metadata(target[0])[target[1]]

    def wants(self, edge: int) -> bool:
        """Whether an input of interest lies behind this edge."""
        return edge < len(self.edges) and self.edges[edge] is not None

    def parametric(self, edge: int) -> bool:
        """Whether the edge leads straight to a parameter, through isometries only."""
        target = self.edges[edge]
        return target is not None and self._depends.leads(target[0])

    def saved(self, name: str) -> Any:
        """A saved value, read once: a second read would recompute a checkpointed segment.

        The walk goes on with dense rows where nodes of this kind save none of this name.
        """
        if name not in self._saved:
            if not _torch.has_saved(self.node, name):
                raise UnsavedError(name)
            self._saved[name] = record.note_saved(self.node, name, _torch.saved(self.node, name))
        return self._saved[name]

    def has_saved(self, name: str) -> bool:
        """Returns True if nodes of this kind save a value of this name."""
        return _torch.has_saved(self.node, name)

    def integer(self, name: str) -> int:
        """A saved integer; negative ones arrive as unsigned 64-bit."""
        return signed(self.saved(name))

    def integers(self, name: str) -> list[int]:
        """Saved integers; negative ones arrive as unsigned 64-bit."""
        return [signed(n) for n in self.saved(name)]

    def dim(self, name: str = "dim", of: int | None = None) -> int:
        """A saved dimension as an index from the front of a tensor with `of` dimensions (default: of the output)."""
        count = len(self.output().shape) if of is None else of
        return self.integer(name) % max(1, count)

    # -- cotangents --------------------------------------------------------------------------------------------------

    def groups(self, nr: int = 0) -> list[Cotangent]:
        """The groups that arrived at an output."""
        return self.arrivals.get(nr, [])

    def densified(self, group: Cotangent, dims: set[int] | None, reason: str) -> Cotangent:
        """Spread over rows the batch axes in `dims` (None: all of them), and note where the last one was lost."""
        if not group.layout.diagonal:
            return group
        if dims is not None:
            where = layouts.diagonal_dims(group.layout, group.shape)
            if where is not None and not where & dims:
                return group
        new = densify(group, dims, self.ledger.charge)
        if not new.layout.diagonal and group.layout.losses > 1:
            self.ledger.dense.append(Loss(self.name, reason))
        return new

    def keep_only(self, group: Cotangent, dims: set[int], reason: str) -> Cotangent:
        """Spread all batch axes but those in `dims`."""
        return self.densified(group, set(range(len(group.shape))) - dims, reason)

    def pulled(self, values: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Call the node: cotangents [K, *output] (None: zero) to [K, *input] for every edge."""
        if self.dry:
            return [None] * len(self.edges)
        if self.node in self.graph.hooks.nodes:
            return through_node(self.graph, self.graph.hooks, self.node, list(values))
        return pull(self.node, values)

    def hooked(self, nr: int, groups: list[Cotangent]) -> list[Cotangent]:
        """Groups that arrived at an output whose tensor has hooks, as those leave them.

        A hook need not be linear: it must see the whole gradient of a loss, added up over all groups and repeated rows.
        """
        alone = [self.densified(g, None, "has a hook, which must see one whole row") for g in groups]
        rows = np.concatenate([g.layout.rows.reshape(-1) for g in alone])
        whole = materialised(rows, torch.cat([g.values for g in alone]))
        return [whole] if self.dry else [Cotangent(whole.layout, at_edge(self.graph, (self.node, nr), whole.values))]

    # -- results -----------------------------------------------------------------------------------------------------

    def send(
        self,
        edge: int,
        layout: Layout,
        values: Tensor | Callable[[], Tensor | None] | None,
        shape: Shape | None = None,
        owned: bool = False,
    ) -> None:
        """Hand a cotangent to an edge: [K, *shape], where a `shape` broadcast from the edge's is summed down to it.

        `owned`: nobody else refers to the memory of `values`, or will; the next node may write over it.
        """
        if not self.wants(edge):
            return
        target = self.input(edge)
        shape = target.shape if shape is None else tuple(shape)
        if layout.stacked > 1:
            self.ledger.charge(layout.stacked * math.prod(shape) * target.dtype.itemsize)
        if self.dry and owned and isinstance(values, Tensor):
            value: Tensor | None = values  # written over: no memory is asked for
        elif self.dry:
            value = torch.empty(layout.stacked, *shape, dtype=target.dtype, device="meta")
        else:
            value = values() if callable(values) else values
        if value is None:
            return
        value = self._cast(value, target)
        if tuple(value.shape) != (layout.stacked, *shape):
            raise RuleError(
                f"the rule of {self.name} returned shape {tuple(value.shape)} for input {edge}; expected "
                f"{(layout.stacked, *shape)} (stacked rows first)"
            )
        if math.prod(p.size for p in layout.pieces) != math.prod(shape):
            raise RuleError(f"the rule of {self.name} returned a layout for another size than {tuple(shape)}")
        group = reduce_to(Cotangent(layout, value), target.shape, self.ledger.charge)
        if layout.diagonal and not group.layout.diagonal:
            self.note_sum(edge, group.layout)
        group.operation, group.owned = self.name, owned
        self.sent.append((edge, group))

    def settle(self, edge: int) -> bool:
        """Have a parameter take what was sent to it now, before the rule goes on; nothing more may be sent to it.

        Whether it did, and nobody will look at what was sent again: its memory may be written over. Also true of an
        edge that leads nowhere; false of one that leads to no parameter, or to one that waits for more.
        """
        return self.ledger.settle(self, edge)

    def taken(self, edge: int) -> list[Message]:
        """Withdraw what was sent to an edge."""
        mine = [message for place, message in self.sent if place == edge]
        self.sent = [pair for pair in self.sent if pair[0] != edge]
        return mine

    def note_sum(self, edge: int, layout: Layout) -> None:
        """Note that the batch axis was summed over on the way to something computed from data."""
        target = self.edges[edge]
        if target is not None and layout.losses > 1 and not self._depends.parameters_only(target[0]):
            self.ledger.dense.append(Loss(self.name, "sums over the batch axis"))

    def _cast(self, value: Tensor, target: Metadata) -> Tensor:
        if value.layout != torch.strided:
            value = value.to_dense()
        if value.is_complex():
            # A lazy conjugate cannot be viewed as real numbers, which is how its products are formed.
            value = value.resolve_conj() if target.dtype.is_complex else value.real
        return value if value.dtype == target.dtype else value.to(target.dtype)

    def send_factor(self, edge: int, factor: Factor) -> None:
        """Hand an unmultiplied factor to an edge that `parametric` is true of."""
        target, shape = self.input(edge).shape, factor.shape
        if math.prod(shape) != math.prod(target):
            raise RuleError(
                f"the rule of {self.name} returned a factor of shape {shape} for an input of shape {target}"
            )
        if tuple(shape) != tuple(target):
            view = Step(lambda t: t.view(shape), lambda values: values.reshape(len(values), *target))
            factor = factor.through(view)
        self.sent.append((edge, factor))

    def send_rows(self, edge: int, factor: Factor) -> None:
        """Multiply a factor out for an edge that leads to no parameter, and send its rows."""
        shape = self.input(edge).shape
        self.ledger.charge(len(factor.rows) * math.prod(shape) * factor.dtype.itemsize)
        if self.dry:
            values = torch.empty(len(factor.rows), *shape, dtype=factor.dtype, device="meta")
        else:
            values = factor.materialise().reshape(-1, *shape)
        group = materialised(factor.rows, values)
        self.send(edge, group.layout, group.values)

    def walk_instead(self, outputs: Sequence[Tensor], operands: Sequence[Tensor | None]) -> None:
        """Walk a graph that computes the same: what arrives at its operands is what the node's inputs get."""
        record.refuse("a graph within the graph")
        self.sent += self.ledger.walk(outputs, operands, self.arrivals)

    def forward_factor(self, edge: int, factor: Factor, step: Step) -> None:
        """Hand a factor on through an isometry."""
        self.sent.append((edge, factor.through(step)))


def signed(value: int) -> int:
    """Undo the wrap-around of a negative 64-bit integer."""
    return value - (1 << 64) if value >= (1 << 63) else value
