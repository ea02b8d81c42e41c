"""One step over several micro-batches: one Gramian of all their losses, though their graphs are never alive at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gramjd._again import Again, listed
from gramjd.aggregation import Coordinatewise, UPGrad
from gramjd.backward import (
    NONFINITE,
    Aggregator,
    GramStep,
    check_aggregator,
    restoring,
    weighted_backward,
    weights_of,
)
from gramjd.engine import compute
from gramjd.engine._torch import uncompiled
from gramjd.engine.accumulate import Blocks, planned_bytes
from gramjd.engine.autograd import add_to_grad, plainly
from gramjd.errors import AggregatorError, InputError, LossError, graph_errors, in_bytes
from gramjd.kernels.dispatch import chosen
from gramjd.losses import (
    Given,
    Inputs,
    Losses,
    all_finite,
    as_budget,
    as_inputs,
    as_losses,
    as_named,
    as_scale,
)
from gramjd.options import as_choice, as_count
from gramjd.text_table import aligned

KEEPS = ("device", "cpu", "nothing")


class Accumulator:
    """One Gramian `G = J J^T` over the losses of several micro-batches, and one update `J^T w` with `w = W(G)`.

    As `gram_backward` of all losses in one call, without all graphs in memory:

        accumulator = gramjd.Accumulator()
        for batch in micro_batches:
            accumulator.add(losses_of(batch))   # frees the graph
        accumulator.step()                      # fills .grad

    `add` computes the block of G of the new losses and its blocks `J_a J_b^T` with those before; `step` asks the
    aggregator for the weights [M] of all M losses. In place of the graphs the Jacobians of the micro-batches are kept,
    as factors: the inputs of each layer and the cotangents of its outputs, about twice the activations.

    Where that is too much, hand over a function, `add(losses_of, batch)`: what does not fit `memory_budget` is computed
    again when it is needed, with the same random numbers and autocast. For k micro-batches that none is kept of, these
    are `k (k + 1) / 2` forward passes and walks for G, and k forward and backward passes for the update. (A layer that
    counts in its forward pass, such as BatchNorm its averages, counts each of them.)

    Args:
        aggregator: any function from G [M, M] to w [M]; default `UPGrad()`.
        inputs: the tensors whose `.grad` is added to, or a module; default: all leaves reached. G is built from them,
            and by default from the parameters reached. A micro-batch need not reach all of them.
        keep: "device" for factors where they are, "cpu" for copies in main memory, "nothing" to compute all again.
        memory_budget: bytes that may be kept, default a quarter of the memory of the device, or of main memory with
            "cpu"; and what `gram_backward` means by it, for one micro-batch.
        nonfinite: as in `gram_backward`.
        backend: as in `gram_backward`.
        group: a `torch.distributed` process group whose ranks all call `step`, for one Gramian over the micro-batches
            of all of them: those of a rank after those of the one before. `inputs` are to be given, the same on all;
            micro-batches must be kept, and come from a module without a wrapper. A rank may have added none.

    Raises:
        InputError: options that are not allowed.
        AggregatorError: an aggregator that is no function of a Gramian.

    Source: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, section 6; the blocks are ours.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> accumulator = Accumulator()
    >>> accumulator.add(w[0] ** 2)
    >>> accumulator.add((w[0] - 2) ** 2 + w[1] ** 2)
    >>> accumulator.step().weights
    tensor([1.0000, 0.6000])
    >>> w.grad
    tensor([0.8000, 2.4000])
    """

    def __init__(
        self,
        aggregator: Aggregator | None = None,
        *,
        inputs: Inputs = None,
        keep: str = "device",
        memory_budget: int | None = None,
        nonfinite: str = "raise",
        backend: str | None = None,
        group: Any = None,
    ) -> None:
        """Start with no losses."""
        self.aggregator = aggregator if aggregator is not None else UPGrad()
        if isinstance(self.aggregator, Coordinatewise):
            raise AggregatorError(
                f"{self.aggregator!r} combines the columns of J, of which none is formed here: hand the losses of all "
                "micro-batches to one gram_backward([...])"
            )
        check_aggregator(self.aggregator)
        self._keep = as_choice(keep, "keep", KEEPS)
        self._inputs = as_inputs(inputs)
        if any(not tensor.is_leaf for tensor in self._inputs or ()):
            raise InputError("an input is computed from others: an Accumulator fills the `.grad` of leaves only")
        self._budget = as_budget(memory_budget)
        self._strict = as_choice(nonfinite, "nonfinite", NONFINITE) == "raise"
        self._backend, self._group = backend, group
        if group is not None and (self._inputs is None or keep == "nothing" or not self._strict):
            raise InputError(
                'with a `group` give `inputs`, such as the module, keep micro-batches, and leave nonfinite="raise"'
            )
        self.reset()

    def reset(self) -> None:
        """Forget all that was added since the last step."""
        self._blocks = Blocks(self._inputs, self._keep, self._budget, self._group is not None)
        self._values: list[Given] = []
        self._names: list[tuple[str, ...] | None] = []

    @property
    def bytes(self) -> int:
        """Bytes that are kept of what was added, each memory once."""
        return self._blocks.nbytes

    def __len__(self) -> int:
        """The number M of losses added since the last step."""
        return sum(entry.m for entry in self._blocks.entries)

    @uncompiled
    def add(self, losses: Losses | Callable[..., Losses], *arguments: Any, retain_graph: bool = False) -> None:
        """Take in the losses of a micro-batch, and free their graph.

        Args:
            losses: as in `gram_backward`; or a function of `arguments` that returns them, and returns the same when it
                is called again before `step`.
            arguments: what the function gets. (Hand them over here: a loop's variable has another value by then.)
            retain_graph: keep the graph of losses that were handed over as tensors.

        Raises:
            LossError: as `gram_backward` does, and where a function returned other losses than the first time.
            InputError: a micro-batch that cannot be kept (hooks on tensors, sparse embeddings, several processes, or
                keep="nothing") and is no function.
            BudgetError: what is to be kept, or the rows of one micro-batch, exceed the memory budget.
            GraphError: as `gram_backward` does.
            Nothing was added then.
        """
        again = Again(losses, arguments) if callable(losses) else None
        if again is None and arguments:
            raise InputError("arguments go with a function that returns the losses: add(losses_of, batch)")
        named: Losses = again.first() if again is not None else losses  # type: ignore[assignment]
        names, given, found = as_named(named, self._strict)
        with chosen(self._backend), graph_errors():
            if all(all_finite(loss.detach()) for loss in found):
                self._blocks.add(found, again, retain_graph)
            else:
                self._blocks.add_unknown(found)
        self._values.append(_detached(given))
        self._names.append(names)

    @uncompiled
    def step(self, scale: float = 1.0) -> GramStep:
        """Add `J^T w` of all that was added to `.grad`, and start anew.

        Args:
            scale: as in `gram_backward`.

        Returns:
            GramStep(weights [M], gramian [M, M]), detached, in the order in which losses were added; with `names` where
            all were handed over by name.

        Raises:
            LossError: nothing was added; a function returned other losses than the first time.
            GraphError: something that was kept (a parameter, data, an activation) was modified in place since.
            InputError: an input that no micro-batch reached.
            AggregatorError: as `gram_backward` does.
        RankError: with a `group`, what any of its ranks raised, on all of them.
            What was added is still there then, and `.grad` as it was; but where one of several forward and backward
            passes fails, as `gram_backward` says.
        """
        if self._group is not None:
            return self._step_over_ranks(scale)
        entries, scale = self._blocks.entries, as_scale(scale)
        if not entries:
            raise LossError("there are no losses: call add() for each micro-batch before step()")
        self._blocks.check()
        with chosen(self._backend), graph_errors():
            G = self._blocks.gramian()
            G = G if scale == 1 else G / scale / scale
            names = _all_names(self._names)
            weights = weights_of(self.aggregator, G, _joined(self._values), self._strict, names, scale)
            self._update(weights)
        self.reset()
        return GramStep(weights, G, names)

    def _step_over_ranks(self, scale: float) -> GramStep:
        from gramjd.distributed.accumulated import group_step
        from gramjd.distributed.ranks import Ranks

        ranks = Ranks(self._group)
        with ranks.together(), chosen(self._backend), graph_errors():
            for entry in self._blocks.entries:
                if entry.batch is not None:
                    entry.batch.check()
            values = [torch.cat([part.reshape(-1) for part in listed(value)]) for value in self._values]
            weights, G = group_step(ranks, self._blocks, values, self.aggregator, as_scale(scale))
        self.reset()
        return GramStep(weights, G, None)

    def _update(self, weights: Tensor) -> None:
        entries = self._blocks.entries
        leaves = list({id(leaf): leaf for entry in entries for leaf in entry.leaves}.values())
        if not all_finite(weights):
            with torch.no_grad():
                add_to_grad([(leaf, torch.full_like(leaf, torch.nan)) for leaf in leaves])
            return
        parts = weights.split([entry.m for entry in entries])
        with plainly():
            gradients = self._blocks.kept_update(parts)
        with restoring(leaves):
            for entry, w in zip(entries, parts, strict=True):
                if entry.batch is None and entry.again is not None and entry.leaves:
                    weighted_backward(entry.again(), w, self._inputs and entry.leaves, False)
            add_to_grad(gradients)

    def explain(self, losses: Losses, batches: int) -> AccumulationPlan:
        """What `batches` micro-batches like this one would keep and compute, for each value of `keep`.

        Args:
            losses: those of one micro-batch; the graph stays usable.
            batches: how many of them make a step.

        Raises:
            LossError, InputError, GraphError: as `gram_backward` does.
        """
        found, batches = as_losses(losses), as_count(batches, "batches", 1)
        with graph_errors():
            graph = compute.read(found, self._inputs, missing_ok=True, everything=True)
            kept = planned_bytes(graph, found)
        return AccumulationPlan(batches, sum(loss.numel() for loss in found), kept)


@dataclass(frozen=True)
class AccumulationPlan:
    """What a step over `batches` micro-batches of `losses` losses takes: `print` it, or take `to_dict()`.

    `kept`: bytes of the factors of one micro-batch, at most: an input that several layers share is counted for each.
    """

    batches: int
    losses: int
    kept: int

    def to_dict(self) -> dict[str, dict[str, int]]:
        """For each value of `keep`: bytes held at once, forward passes, walks, backward passes, blocks of G.

        >>> AccumulationPlan(batches=4, losses=8, kept=1000).to_dict()["nothing"]
        {'bytes': 1000, 'forward': 14, 'walks': 10, 'backward': 4, 'blocks': 10}
        """
        k, pairs = self.batches, self.batches * (self.batches + 1) // 2
        all_kept = {"bytes": k * self.kept, "forward": k, "walks": k, "backward": 0, "blocks": pairs}
        nothing = {"bytes": self.kept, "forward": pairs + k, "walks": pairs, "backward": k, "blocks": pairs}
        return {"device": all_kept, "cpu": dict(all_kept), "nothing": nothing}

    def __str__(self) -> str:
        """The table."""
        head = ("keep", "bytes", "forward passes", "walks", "backward passes", "blocks of G")
        body = [
            (name, in_bytes(row["bytes"]), *(str(n) for key, n in row.items() if key != "bytes"))
            for name, row in self.to_dict().items()
        ]
        size = f"{self.batches} micro-batches of {self.losses} losses, G [{self.batches * self.losses}] squared"
        return "\n".join([aligned([head, *body]), size])


def _detached(losses: Given) -> Given:
    return losses.detach() if isinstance(losses, Tensor) else [loss.detach() for loss in losses]


def _all_names(names: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    given = [one for one in names if one is not None]
    return tuple(name for one in given for name in one) if len(given) == len(names) else None


def _joined(values: Sequence[Given]) -> Given:
    """All losses: one tensor where each micro-batch gave one and all but their first dimensions agree."""
    single = [value for value in values if isinstance(value, Tensor) and value.ndim]
    if len(single) == len(values) and len({value.shape[1:] for value in single}) == 1:
        return torch.cat(single)
    return [part for value in values for part in listed(value)]
