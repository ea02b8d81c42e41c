"""Tasks: which inputs several losses share, and the Gramian over those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gramjd.engine import compute
from gramjd.engine.choice import Choice, choose
from gramjd.engine.consumers.gramian import Gramian
from gramjd.engine.consumers.update import Kept
from gramjd.engine.graph import Edge, Graph
from gramjd.engine.memory import MemoryLimits
from gramjd.engine.parameter import Jacobian
from gramjd.engine.survey import survey_of


@dataclass
class Tasks:
    """Losses with what they share: `joint` are the tensors that get a combination, `own` all other leaves.

    `graph` has all leaves as inputs; `owners` are the losses that each of them belongs to.
    """

    losses: Sequence[Tensor]
    graph: Graph
    owners: dict[Edge, int]
    shared: dict[Edge, Tensor]

    @property
    def joint(self) -> list[Tensor]:
        """The tensors that get the combination."""
        return list(self.shared.values())

    @property
    def own(self) -> list[Tensor]:
        """All leaves that do not."""
        return [leaf for edge, leaf in self.graph.leaves.items() if edge not in self.shared]

    def gramian(self, memory_budget: int | None, reuse: bool) -> tuple[Tensor, Kept | None]:
        """G over what is shared; with `reuse` what was kept of the rows."""
        losses, m = self.losses, sum(loss.numel() for loss in self.losses)
        if not self.shared:
            return losses[0].new_zeros(m, m).detach(), None
        limits = MemoryLimits.of(losses, memory_budget)
        graph, heads = self._read_for_passes()
        counted = [edge for edge in graph.targets if edge in self.shared]
        choice = choose(graph, losses, limits, counted, reuse)
        if choice.passes:
            kept = Kept(graph, None, int(limits.kept)) if reuse else None
            return self._by_passes(graph, choice, counted, heads, kept)
        graph = compute.read(losses, self.joint)
        if reuse:
            return compute.gramian_and_rows(graph, losses, self.joint, memory_budget)
        return compute.total_of(graph, losses, None, memory_budget), None

    def _read_for_passes(self) -> tuple[Graph, list[Edge]]:
        """The graph that passes go through, with those leaves whose gradients they give, too.

        Leaves that are not shared and have several losses would have passes go on for more than one plain one.
        """
        own = [edge for edge in self.graph.targets if edge not in self.shared]
        if all(self.owners[edge].bit_count() <= 1 for edge in own):
            return self.graph, own
        return compute.read(self.losses, self.joint), []

    def _by_passes(
        self, graph: Graph, choice: Choice, counted: Sequence[Edge], heads: Sequence[Edge], kept: Kept | None
    ) -> tuple[Tensor, Kept | None]:
        m = sum(loss.numel() for loss in self.losses)
        dtype = compute.wide_dtype([*self.losses, *self.joint])
        total = Gramian(m, self.losses[0].device, dtype)
        summed = [edge for edge in heads if kept is not None and kept.limit and kept.wants(edge)]
        rows = compute.by_passes(graph, self.losses, choice, total, counted, (), summed)
        if kept is not None:
            kept.take(rows)
        return total.finished(), kept


def read_tasks(losses: Sequence[Tensor], shared: Sequence[Tensor] | None) -> Tasks:
    """The graph of several losses, and what they share: the tensors given, or parameters that several losses reach."""
    graph = compute.read(losses, None, everything=True, beside=shared)
    owners = _owners(graph, losses)
    if shared is not None:
        joint = {id(t) for t in shared}
        return Tasks(losses, graph, owners, {e: t for e, t in graph.targets.items() if id(t) in joint})
    several = {e: t for e, t in graph.targets.items() if e not in graph.others and owners[e].bit_count() > 1}
    return Tasks(losses, graph, owners, several)


def _owners(graph: Graph, losses: Sequence[Tensor]) -> dict[Edge, int]:
    """The losses that each input belongs to, as bits: found once per structure, unless numbers in the graph decide."""
    survey, number = survey_of(graph, losses), graph.number
    if survey.steady:
        return {edge: survey.reached[number[edge[0]]] for edge in graph.targets}
    owners = dict.fromkeys(graph.targets, 0)

    def note(edge: Edge, jacobian: Jacobian) -> None:
        owners[edge] = sum(1 << i for i in jacobian.losses())

    compute.plan(graph, losses, note)
    return owners
