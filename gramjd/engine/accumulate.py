"""One Gramian over losses whose graphs are not alive at the same time: its blocks, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gramjd.engine import compute
from gramjd.engine.autograd import release
from gramjd.engine.consumers.batches import Batch, Meeting, Visit, bytes_of, cannot_keep, combined
from gramjd.engine.graph import SINK, WAITS, Graph, several_processes
from gramjd.engine.memory import MemoryLimits, memory_of
from gramjd.engine.parameter import Jacobian
from gramjd.errors import BudgetError, InputError, in_bytes

Again = Callable[[], list[Tensor]]
AT_ONCE = "one Gramian over several micro-batches needs the rows of all losses of one of them"


@dataclass
class Entry:
    """A micro-batch: how many losses and where, which leaves, its Jacobians or how to compute the losses again."""

    m: int
    device: torch.device
    leaves: list[Tensor]
    batch: Batch | None
    again: Again | None
    finite: bool = True


@dataclass
class Blocks:
    """The micro-batches so far and the blocks `J_a J_b^T` of their Gramian, for a no later than b."""

    inputs: Sequence[Tensor] | None
    keep: str
    memory_budget: int | None
    # Products are formed at the step, with those of other ranks.
    later: bool = False
    entries: list[Entry] = field(default_factory=list)
    blocks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(entry.batch.nbytes for entry in self.entries if entry.batch is not None)

    def add(self, losses: list[Tensor], again: Again | None, retain_graph: bool) -> None:
        """Take in the losses of a micro-batch. Nothing has changed if it raises."""
        graph = self._read(losses)
        m, home = sum(loss.numel() for loss in losses), losses[0].device
        limits = MemoryLimits.of(losses, self.memory_budget)
        reason = _refusal(graph, self.later) if self.keep != "nothing" else 'keep="nothing"'
        place = torch.device("cpu") if self.keep == "cpu" and reason is None else home
        meeting = Meeting(graph, m, home, compute.accumulation_dtype(losses, graph, None), place, not self.later)
        earlier = () if self.later else [e.batch for e in self.entries if e.batch is not None and e.finite]
        meeting.meets(earlier)
        compute.notify(compute.at_once(graph, losses, meeting.note, limits, AT_ONCE))
        compute.name_others(graph)
        batch, new = meeting.batch, len(self.entries)
        batch.collected()
        if reason is None and self._too_large(self.nbytes + batch.nbytes, place, again):
            reason = "it does not fit the memory budget"
        if reason is not None and self.later:
            raise InputError(f"a micro-batch cannot be kept, as it has to be with a `group`: {reason}")
        if reason is not None and again is None:
            raise InputError(f"a micro-batch cannot be kept: {reason}. Hand over a function: add(losses_of, batch)")
        found = {} if self.later else self._met(meeting, batch)
        if not self.later:
            found[new, new] = meeting.own.finished()
        self.entries.append(Entry(m, home, self._leaves(graph), batch if reason is None else None, again))
        self.blocks |= found
        if not retain_graph and reason is None:
            release(graph, losses)

    def _met(self, meeting: Meeting, batch: Batch) -> dict[tuple[int, int], Tensor]:
        """The products of a new micro-batch with those before it; those that are not kept are computed again."""
        new, kept = len(self.entries), iter(meeting.products)
        found = {}
        for old, entry in enumerate(self.entries):
            if not entry.finite:
                continue
            if entry.batch is not None:
                found[old, new] = next(kept)[1]
                continue
            assert entry.again is not None, "what is not kept can be computed again"
            losses = entry.again()
            graph = self._read(losses)
            visit = Visit(graph, entry.m, batch, losses[0].device, meeting.own.dtype)
            limits = MemoryLimits.of(losses, self.memory_budget)
            compute.at_once(graph, losses, visit.note, limits, AT_ONCE)
            found[old, new] = visit.product.T
        return found

    def add_unknown(self, losses: list[Tensor]) -> None:
        """Take in losses that are not finite: G is NaN from here on."""
        graph = self._read(losses)
        m, home = sum(loss.numel() for loss in losses), losses[0].device
        self.entries.append(Entry(m, home, self._leaves(graph), None, None, finite=False))

    def _leaves(self, graph: Graph) -> list[Tensor]:
        """Those leaves whose `.grad` is to be added to, as far as they are reached."""
        if self.inputs is None:
            return list(graph.leaves.values())
        return list(graph.targets.values())

    def _too_large(self, needed: int, place: torch.device, again: Again | None) -> bool:
        limit = memory_of(place) // 4 if self.memory_budget is None else self.memory_budget
        if needed > limit and again is None:
            raise BudgetError(
                f"the micro-batches so far need {in_bytes(needed)} to be kept, but memory_budget is {in_bytes(limit)}: "
                f"raise it to at least {needed} bytes, keep them on the CPU, or hand over a function that computes the "
                "losses again: add(losses_of, batch)"
            )
        return needed > limit

    def _read(self, losses: Sequence[Tensor]) -> Graph:
        """The graph; inputs that this micro-batch does not reach are left out."""
        graph = compute.read(losses, self.inputs, missing_ok=True, everything=True)
        graph.targets = {edge: leaf for edge, leaf in graph.targets.items() if edge[0] in graph.edges}
        return graph

    def gramian(self) -> Tensor:
        """G [M, M] over all micro-batches; NaN if one of them was not finite."""
        sizes, device = [entry.m for entry in self.entries], self.entries[0].device
        dtype = torch.float32
        for block in self.blocks.values():
            dtype = torch.promote_types(dtype, block.dtype)
        if not all(entry.finite for entry in self.entries):
            return torch.full((sum(sizes), sum(sizes)), torch.nan, dtype=dtype, device=device)
        ends = [0]
        for m in sizes:
            ends.append(ends[-1] + m)
        G = torch.zeros(ends[-1], ends[-1], dtype=dtype, device=device)
        for (a, b), block in self.blocks.items():
            rows, columns = slice(ends[a], ends[a + 1]), slice(ends[b], ends[b + 1])
            G[rows, columns] = block
            if a != b:
                G[columns, rows] = block.T
        return G

    def check(self) -> None:
        """Raise if what is kept cannot be used any more, or an input was reached by no micro-batch."""
        for entry in self.entries:
            if entry.batch is not None:
                entry.batch.check()
        reached = {id(leaf) for entry in self.entries for leaf in entry.leaves}
        optional = getattr(self.inputs, "optional", False)
        for place, tensor in enumerate(() if self.inputs is None or optional else self.inputs):
            if id(tensor) not in reached:
                raise InputError(
                    f"input {place} (shape {tuple(tensor.shape)}) is not reached by any loss of any micro-batch: "
                    "remove it from `inputs`, or compute the losses from it"
                )

    def kept_update(self, weights: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Each leaf with the part of `J^T w` that comes from what was kept; zero where nothing arrived."""
        pairs = [(e, e.batch, w) for e, w in zip(self.entries, weights, strict=True) if e.batch is not None]
        found = combined([batch for _, batch, _ in pairs], [w for *_, w in pairs])
        arrived = {id(leaf) for leaf, _ in found}
        rest = {id(leaf): leaf for entry, *_ in pairs for leaf in entry.leaves if id(leaf) not in arrived}
        return [*found, *((leaf, torch.zeros_like(leaf)) for leaf in rest.values())]


def _refusal(graph: Graph, summed: bool) -> str | None:
    """Why a micro-batch cannot be kept, if it cannot. `summed`: gradients are summed over processes by gramjd."""
    if several_processes() and not summed:
        return "there are several processes, and gradients are reduced over them in a backward pass only"
    return WAITS if summed and SINK in graph.names.values() else cannot_keep(graph)


def planned_bytes(graph: Graph, losses: Sequence[Tensor]) -> int:
    """About what the Jacobians of a micro-batch would hold."""
    found: list[Jacobian] = []
    compute.plan(graph, losses, lambda _, jacobian: found.append(jacobian))
    return bytes_of(found)
