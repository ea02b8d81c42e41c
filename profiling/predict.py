"""The peak memory of a step, told from its graph before the step is run.

The forward pass has been made, so what the graph saved is known. The walk is planned as `explain` plans it, without a
number being computed: cotangents, kept factors and the workspaces of the products are shapes on the meta device, and
counted. The backward pass is gone through on paper, saved tensors being given back on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gramjd.engine import compute
from gramjd.engine._torch import StorageWeakRef, TorchDispatchMode, tree_leaves
from gramjd.engine.autograd import in_graph_task
from gramjd.engine.consumers.gramian import Gramian
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.factor import Factor, Gathered
from gramjd.engine.graph import Edge, Graph, Node
from gramjd.engine.node import Message
from gramjd.engine.parameter import settle
from gramjd.engine.rules.pointwise import OVERWRITING
from gramjd.engine.walk import Budget, Walk, seeds_for
from gramjd.errors import BudgetError
from gramjd.kernels import cost
from gramjd.losses import as_losses
from gramjd.profiling.activations import all_nodes, constants, saved_by, storage_of
from gramjd.profiling.backward_peak import ALIASES, backward_peak, node_bytes
from gramjd.profiling.target import Work

# What UPGrad's solver has at once, in float64 as counted: copies of the m x m problem, and for few losses, whose
# problems are solved together by factorisation, so many of the m of them. Losses that all bind each other need less.
COPIES, TOGETHER, FEW = 22, 3, 48


@dataclass(frozen=True)
class Prediction:
    """Bytes beyond what was held before the step.

    Args:
        m: number of losses.
        saved: activations that the graph keeps.
        walk: most that cotangents, factors, workspaces and G take at once, beyond `saved`.
        weights: what the solver takes beyond `saved`, with G.
        backward: most that is alive in the weighted backward pass, saved tensors and gradients included.
        plain: the same of a plain step.
        held: parameters, buffers and batch, which were there before.
    """

    m: int
    saved: int
    walk: int
    weights: int
    backward: int
    plain: int
    held: int

    @property
    def peak(self) -> int:
        """Of a step with gramjd."""
        return max(self.saved + self.walk, self.saved + self.weights, self.backward)

    def to_dict(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self) | {"peak": self.peak}


def predict_peak(work: Work) -> Prediction:
    """Peak memory of a step with gramjd's `update="backward"` and UPGrad, from two forward passes and a plan.

    Args:
        work: from `gramjd.profiling.target.build`.

    Raises:
        GraphError: the graph cannot be walked.
    """
    before = constants(all_nodes(as_losses(work.losses())))  # kept alive, so that no address is used twice
    losses = as_losses(work.losses())
    nodes = all_nodes(losses)
    again = dict(storage_of(t) for t in constants(nodes))
    held = {address: size for address, size in map(storage_of, before) if address in again}
    module = [*work.model.parameters(), *work.model.buffers()] if work.model is not None else []
    held |= dict(storage_of(t) for t in [*module, *work.parameters.values()])
    saved = saved_by(nodes, held)
    graph = compute.read(losses, list(work.parameters.values()), missing_ok=True)
    square = work.m**2 * compute.accumulation_dtype(losses, graph, None).itemsize
    every = {address: size for mine in saved.values() for address, size in mine.items()}
    plain = backward_peak(graph, saved)
    return Prediction(
        m=work.m,
        saved=sum(every.values()),
        walk=_walk_peak(graph, losses),
        weights=square + int(8 * work.m**2 * (COPIES + (TOGETHER * work.m if work.m < FEW else 0))),
        backward=plain + square,
        plain=plain,
        held=sum(held.values()),
    )


def _walk_peak(graph: Graph, losses: Sequence[Tensor]) -> int:
    with _Tracker() as tracker:
        m = sum(loss.numel() for loss in losses)
        total = Gramian(m, torch.device("meta"), compute.accumulation_dtype(losses, graph, None))

        def add(edge: Edge, groups: list[Cotangent], factors: list[Factor]) -> None:
            tracker.watching = True
            if any(isinstance(f, Gathered) for f in factors):  # their work depends on which ids there are
                _settle_one_by_one(tracker, total, factors)
            else:
                settle(total, graph.targets[edge].shape, groups, factors)
            tracker.watching = False

        walk = _Counted(graph, add, Budget(float("inf")), dry=True, keeps=False)
        walk.tracker = tracker
        in_graph_task(lambda: walk.run(seeds_for(losses, dry=True)))
    return tracker.peak


def _settle_one_by_one(tracker: _Tracker, total: Gramian, factors: Sequence[Factor]) -> None:
    for factor in factors:
        if isinstance(factor, Gathered):
            tracker.look(2 * cost.chunk() * total.dtype.itemsize + len(factor.rows) ** 2 * total.dtype.itemsize)
        else:
            total.add_factor(factor)


class _Tracker(TorchDispatchMode):
    """Bytes of the meta tensors alive; the peak is that of the moments looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.watching = False
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.is_meta:
                address, size = storage_of(t)
                known = self._alive.get(address)
                if known is None or known[0].expired():
                    self._alive[address] = StorageWeakRef(t.untyped_storage()), size
        if self.watching:
            self.look()
        return out

    def look(self, extra: int = 0) -> None:
        """Count what is alive, and `extra` bytes that are not made in a plan."""
        self._alive = {address: entry for address, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, extra + sum(size for _, size in self._alive.values()))

    def forget(self, tensor: Tensor) -> None:
        """Not made by the walk: its storage is one of those that the graph saved."""
        address, _ = storage_of(tensor)
        self._alive[address] = StorageWeakRef(tensor.untyped_storage()), 0


class _Counted(Walk):
    """A planned walk whose messages share storages where those of a real walk would."""

    tracker: _Tracker
    node: Node = None
    arrived: Sequence[Tensor] = ()

    def _send_on(self, node: Node, inbox: dict[int, list[Message]]) -> None:
        around = self.node, self.arrived  # of a node that has its parameter take its rows at once
        self.node = node
        self.arrived = [m.values for queue in inbox.values() for m in queue if isinstance(m, Cotangent)]
        super()._send_on(node, inbox)
        together = [[m.values.nbytes for m in queue if isinstance(m, Cotangent)] for queue in inbox.values()]
        united = sum(sum(sizes) for sizes in together if len(sizes) > 1)  # stacked anew, until the visit ends
        name = self.graph.names[node]
        united = 0 if name in OVERWRITING else united  # or handed on
        self.tracker.look(united + (self._input_of(node) if "Convolution" in name else 0))
        self.node, self.arrived = around

    def _input_of(self, node: Node) -> int:
        """A convolution's backward makes a second result: as large as the first, or as the parts it is made in."""
        child, nr = node.next_functions[0]
        if child not in self.graph.wanted:
            return 0
        return min(node_bytes(self.graph, child, nr), cost.chunk() * self.graph.metadata(child)[nr].dtype.itemsize)

    def _deliver(self, node: Node, nr: int, message: Message) -> None:
        if isinstance(message, Factor):
            x = getattr(message, "x", None)
            if x is not None:
                self.tracker.forget(x)
            c = getattr(message, "c", None)
            if c is not None:
                message = replace(message, c=self._shared(c))  # type: ignore[call-arg]
        elif self.node is not None and self.graph.names[self.node] in ALIASES:
            message = Cotangent(message.layout, self._shared(message.values), message.operation, message.owned)
        super()._deliver(node, nr, message)

    def _shared(self, values: Tensor) -> Tensor:
        for other in self.arrived:
            if other.numel() == values.numel() and other.dtype == values.dtype:
                return other.reshape(values.shape)
        return values


def largest_m(predict: Callable[[int], Prediction], memory: int, start: int = 8) -> Prediction:
    """The prediction of the largest m whose step, with what is held before it, fits into `memory` bytes.

    m is doubled while the next prediction is expected to fit, then closed in on along the line through the last two:
    no forward pass is run that is expected not to fit.

    Args:
        predict: `m -> Prediction`.
        memory: bytes in all.
        start: first m tried; must be 2 or more.

    Raises:
        BudgetError: not even two losses fit.

    >>> linear = lambda m: Prediction(m, saved=100 * m, walk=0, weights=0, backward=0, plain=0, held=50)
    >>> largest_m(linear, 7777).m
    77
    """
    found: dict[int, Prediction] = {}

    def needed(m: int) -> int:
        if m not in found:
            found[m] = predict(m)
        return found[m].held + found[m].peak

    while start > 2 and needed(start) > memory:
        start //= 2
    if needed(start) > memory:
        raise BudgetError(
            f"a step with {start} losses needs {needed(start)} bytes, more than the {memory} given: shrink the model "
            "or the samples"
        )
    low, slope, bound = start, needed(start) / start, 1 << 40
    while True:
        reach = low + int((memory - needed(low)) / max(slope, 1e-9))
        new = min(2 * low, reach, bound - 1)
        if new <= low:
            new = low + 1  # the line may bend: the next one decides
            if new >= bound or needed(new) > memory:
                return found[low]
        if needed(new) > memory:
            bound = new
            slope = (needed(new) - needed(low)) / (new - low)
            continue
        slope = max((needed(new) - needed(low)) / (new - low), 1e-9)
        low = new
