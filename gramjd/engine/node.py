"""A node as a rule sees it, and what a rule hands on.

A rule is a generator: it yields what each input receives (`Send`, `SendFactor`) as a layout and a function. It decides
from shapes, layouts and saved numbers, and computes nothing itself: a plan never calls the functions, the walk does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from gramjd.engine import _torch
from gramjd.engine import layout as layouts
from gramjd.engine.autograd import pull
from gramjd.engine.cotangent import Charge, Cotangent, by_loss, densify, unlimited
from gramjd.engine.factor import Factor
from gramjd.engine.graph import Graph, Metadata, Node
from gramjd.engine.hooks import through_node
from gramjd.engine.layout import Layout, Owners, Shape
from gramjd.engine.segments import rows_by_loss

Message = Cotangent | Factor
Value = TypeVar("Value")


@dataclass(frozen=True)
class LostAxis:
    """Where the last batch axis was lost: the operation and why."""

    operation: str
    reason: str


class UnsavedError(Exception):
    """A rule read a value that nodes of this kind do not save in this release of PyTorch."""


class Operand(NamedTuple):
    """A tensor of a factor: its shape and dtype, and how to compute it. Ids are read in a plan as well."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    compute: Callable[[], Tensor]
    is_ids: bool = False

    def planned(self) -> Tensor:
        """Shape and dtype alone."""
        return self.compute() if self.is_ids else torch.empty(self.shape, dtype=self.dtype, device="meta")


class Overwrite(NamedTuple):
    """How to compute rows in the memory of a cotangent that nothing else refers to any more.

    `cotangent`: values [K, n, *]; as rows they are [K n, *]. `parameters`: edges to which was sent what refers to that
    memory, a weight's last. `part(rows, which)`: the result for some of the rows, and which they are.
    """

    cotangent: Cotangent
    parameters: tuple[int, ...]
    part: Callable[[Tensor, slice], Tensor]


class Send(NamedTuple):
    """What the input at an edge receives: rows of a layout, computed by `compute` (None: zero).

    `shape` is that of a row, where it is broadcast from the edge's: the walk sums it down. `donated`: nothing else
    refers to the memory of the result. `sums`: a batch axis is summed over on the way. `over`: how to do without new
    memory.
    """

    edge: int
    layout: Layout
    compute: Callable[[], Tensor | None]
    shape: tuple[int, ...] | None = None
    donated: bool = False
    sums: bool = False
    over: Overwrite | None = None


class SendFactor(NamedTuple):
    """What a parameter at an edge receives: `build(*operands)`, unmultiplied."""

    edge: int
    owners: Owners
    build: Callable[..., Factor]
    operands: tuple[Operand, ...]


class SendGraph(NamedTuple):
    """A graph that computes the same as the node: what arrives at its operands is what the node's inputs receive.

    `numbers`: a plan builds it from operands with numbers, too, where it has tensors of its own on their device.
    """

    operands: tuple[Operand | None, ...]
    build: Callable[[Sequence[Tensor | None]], Sequence[Tensor]]
    numbers: bool = False


Sends = Iterable[Send | SendFactor | SendGraph]
Rule = Callable[["NodeView"], Sends]


class Once:
    """A value that is computed when it is first asked for, once per visit of a node."""

    __slots__ = ("compute", "found", "value")

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.compute, self.found, self.value = compute, False, None

    def __call__(self) -> Any:
        """The value."""
        if not self.found:
            self.value, self.found = self.compute(), True
        return self.value


class NodeView:
    """One node with the cotangents that arrived at its outputs, as a rule sees it.

    A view outlives the node that it was made for: its plan binds it to other nodes of the same structure.
    """

    def __init__(
        self,
        name: str,
        outputs: Sequence[Metadata],
        inputs: Sequence[Metadata | None],
        parametric: Sequence[bool],
    ) -> None:
        self.name, self.outputs, self.inputs = name, outputs, inputs
        self._parametric = parametric
        self.charging: Charge = unlimited
        self.arrivals: dict[int, list[Cotangent]] = {}
        self.graph: Graph | None = None
        self.handle: Node = None
        # True while a function that a rule sent is called; else what a rule reads belongs to its plan.
        self.computing = False
        self.guards: dict[str, Any] = {}
        self.reads_data = False
        self.charged = 0
        self.lost: list[LostAxis] = []
        self._saved: dict[str, Any] = {}
        self._once: list[Once] = []

    def release(self) -> None:
        """Refer to nothing of a graph any more."""
        self.graph, self.handle, self.computing, self.charging = None, None, False, unlimited
        if self._saved:
            self._saved.clear()
        for one in self._once:
            one.found, one.value = False, None

    # -- what the node says ------------------------------------------------------------------------------------------

    def output(self, nr: int = 0) -> Metadata:
        """Shape, dtype and device of the node's output (where cotangents arrive)."""
        return self.outputs[nr]

    def input(self, edge: int) -> Metadata:
        """Shape, dtype and device of what an edge leads to (where cotangents go)."""
        found = self.inputs[edge]
        assert found is not None, "an edge that leads nowhere has no shape"
        return found

    def wants(self, edge: int) -> bool:
        """Returns True if an input of interest lies behind this edge."""
        return edge < len(self.inputs) and self.inputs[edge] is not None

    @property
    def wanted(self) -> list[int]:
        """The edges that lead to an input of interest."""
        return [edge for edge, target in enumerate(self.inputs) if target is not None]

    def parametric(self, edge: int) -> bool:
        """Returns True if the edge leads straight to a parameter, through isometries only."""
        return self._parametric[edge]

    def saved(self, name: str) -> Any:
        """A saved value, read once per visit: a second read would recompute a checkpointed segment.

        The walk goes on with dense rows where nodes of this kind save none of this name.
        """
        found = self._saved
        if name not in found:
            if not _torch.has_saved(self.handle, name):
                raise UnsavedError(name)
            found[name] = _torch.saved(self.handle, name)
        if not self.computing:
            if _has_tensor(found[name]):
                self.reads_data = True
            else:
                self.guards[name] = found[name]
        return found[name]

    def has_saved(self, name: str) -> bool:
        """Returns True if nodes of this kind save a value of this name."""
        return _torch.has_saved(self.handle, name)

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """What a custom function saved by `ctx.save_for_backward`. Read it in what is sent, not in the rule itself."""
        self.reads_data |= not self.computing
        found: tuple[Tensor, ...] = self.handle.saved_tensors
        return found

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

    def cotangents(self, nr: int = 0) -> list[Cotangent]:
        """Those that arrived at an output."""
        return self.arrivals.get(nr, [])

    def charge(self, nbytes: int) -> None:
        """Announce rows that will be computed."""
        self.charged = max(self.charged, nbytes)
        self.charging(nbytes)

    def densified(self, cotangent: Cotangent, dims: set[int] | None, reason: str) -> Cotangent:
        """Spread over rows the batch axes in `dims` (None: all of them), and note where the last one was lost."""
        if not cotangent.layout.diagonal:
            return cotangent
        if dims is not None:
            where = layouts.diagonal_dims(cotangent.layout, cotangent.shape)
            if where is not None and not where & dims:
                return cotangent
        new = densify(cotangent, dims, self.charge)
        if not new.layout.diagonal and cotangent.layout.losses > 1:
            self.lost.append(LostAxis(self.name, reason))
        return new

    def keep_only(self, cotangent: Cotangent, dims: set[int], reason: str) -> Cotangent:
        """Spread all batch axes but those in `dims`."""
        return self.densified(cotangent, set(range(len(cotangent.shape))) - dims, reason)

    # -- for what is sent --------------------------------------------------------------------------------------------

    def call(self, values: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Call the node: cotangents [K, *output] (None: zero) to [K, *input] for every edge."""
        graph = self.graph
        assert graph is not None, "a node is called by what a rule sends"
        if self.handle in graph.hooks.nodes:
            return through_node(graph, graph.hooks, self.handle, list(values))
        return pull(self.handle, values)

    def once(self, compute: Callable[[], Value]) -> Callable[[], Value]:
        """A function that computes a value when it is first called, for several sends to share."""
        one = Once(compute)
        self._once.append(one)
        return one

    def send(
        self,
        edge: int,
        layout: Layout,
        compute: Callable[[], Tensor | None],
        shape: Shape | None = None,
        donated: bool = False,
    ) -> Send:
        """A cotangent for an edge: `compute()` gives [K, *shape], where a `shape` broadcast from the edge's is summed.

        `donated`: nothing else refers to the memory of the result, or will; the next node may write over it.
        """
        return Send(edge, layout, compute, None if shape is None else tuple(shape), donated)

    def send_factor(
        self, edge: int, owners: Owners, build: Callable[..., Factor], *operands: Operand
    ) -> Send | SendFactor:
        """A factor for a parameter; for an edge that leads to none its rows, those of one loss added up."""
        if self.parametric(edge):
            return SendFactor(edge, owners, build, operands)
        shape = self.input(edge).shape
        layout, _ = by_loss(owners, math.prod(shape))
        if layout.stacked > 1:
            itemsize = max(o.dtype.itemsize for o in operands if not o.is_ids)
            self.charge(layout.stacked * math.prod(shape) * itemsize)

        def rows() -> Tensor:
            factor = build(*(o.compute() for o in operands))
            return rows_by_loss(factor, layout.owners).reshape(-1, *shape)

        return Send(edge, layout, rows)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(isinstance(v, Tensor) for v in value)
    return isinstance(value, Tensor)


def signed(value: int) -> int:
    """Undo the wrap-around of a negative 64-bit integer."""
    return value - (1 << 64) if value >= (1 << 63) else value
