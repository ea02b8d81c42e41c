"""The step of several tasks: shared parameters get the weighted sum of gradients, the others their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gramjd.aggregation import UPGrad
from gramjd.backward import (
    UPDATES,
    Aggregator,
    GramStep,
    check_aggregator,
    may_reuse,
    restoring,
    weighted_backward,
    weights_of,
)
from gramjd.engine._torch import uncompiled
from gramjd.engine.autograd import add_to_grad, plainly, release
from gramjd.engine.consumers.update import Kept
from gramjd.engine.tasks import Tasks, read_tasks
from gramjd.errors import graph_errors
from gramjd.kernels.dispatch import chosen
from gramjd.losses import Inputs, Losses, as_budget, as_inputs, as_named, check_tasks
from gramjd.options import as_choice
from gramjd.renamed import MTL_WORDS, foreign_words


@uncompiled
@foreign_words(MTL_WORDS)
def mtl_backward(
    losses: Losses,
    aggregator: Aggregator | None = None,
    *,
    shared: Inputs = None,
    retain_graph: bool = False,
    update: str = "backward",
    memory_budget: int | None = None,
    backend: str | None = None,
    group: Any = None,
) -> GramStep:
    """Multi-task step: shared parameters get `J^T w`, every other parameter the plain gradient of its own loss.

    Args:
        losses: one scalar per task (a tensor [m], a sequence of scalars, or a mapping from names to scalars).
        aggregator: any function from G [m, m] to w [m]; default `UPGrad()`. G is built from the shared parameters.
        shared: the parameters that get the weighted combination, or a module; default: all parameters that more than
            one loss reaches (all leaves, where there is no `nn.Parameter`). Other leaves that several losses reach get
            the sum of their gradients.
        retain_graph: keep the graph for another backward pass, as in PyTorch.
        update: "backward" for further passes through the graph that fill `.grad`; "reuse" to make `J^T w`, and the
            gradients of parameters that one task alone has, of what was computed for G: faster, for the memory and with
            the exceptions that `gram_backward` tells of.
        memory_budget: bytes that the rows of J may take, and that "reuse" may keep, as in `gram_backward`.
        backend: what `gramjd.kernels.use_backend` takes; default: what is in force.
        group: a `torch.distributed` process group whose ranks all make this call with the same tasks, each with its
            part of the data: a loss is the mean over ranks then, and so are gradients. DistributedDataParallel is not
            needed. Default: the losses of this process alone.

    Returns:
        GramStep(weights [m], gramian [m, m]). With nothing shared G is zero.

    Raises:
        LossError: also for a task whose loss has more than one element.
        InputError, BudgetError, GraphError, AggregatorError, RuntimeError: as `gram_backward` does; what it says of
            `.grad` holds for all passes together.
        RankError: with a `group`, what any of its ranks raised, on all of them.

    >>> trunk, heads = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    >>> step = mtl_backward([heads[0] * trunk.sum(), -2 * heads[1] * trunk[0]], shared=trunk)
    >>> step.gramian
    tensor([[ 2., -2.],
            [-2.,  4.]])
    >>> heads.grad
    tensor([ 2., -2.])
    """
    if group is not None:
        from gramjd.distributed.tasks import group_mtl_backward

        return group_mtl_backward(
            losses,
            aggregator,
            group,
            shared=shared,
            retain_graph=retain_graph,
            update=update,
            memory_budget=memory_budget,
            backend=backend,
        )
    as_choice(update, "update", UPDATES)
    names, losses, found = as_named(losses)
    check_tasks(losses, found)
    memory_budget = as_budget(memory_budget)
    aggregator = aggregator if aggregator is not None else UPGrad()
    check_aggregator(aggregator)
    targets = as_inputs(shared, "shared")
    with chosen(backend), graph_errors():
        tasks = read_tasks(found, targets)
        G, kept = tasks.gramian(memory_budget, update == "reuse" and may_reuse())
        weights = weights_of(aggregator, G, losses, names=names)
        with restoring([*tasks.own, *tasks.joint]):
            _fill(found, tasks, kept, weights, retain_graph)
    return GramStep(weights, G, names)


def _fill(losses: Sequence[Tensor], tasks: Tasks, kept: Kept | None, weights: Tensor, retain_graph: bool) -> None:
    """Add to `.grad`: from what was kept, and by backward passes for all else."""
    gradients: list[tuple[Tensor, Tensor]] = []
    if kept is not None:
        with plainly():
            gradients = kept.gradients(weights)
    done = {id(leaf) for leaf, _ in gradients}
    own, joint = ([t for t in those if id(t) not in done] for those in (tasks.own, tasks.joint))
    if own:
        weighted_backward(losses, torch.ones_like(weights), own, retain_graph or bool(joint))
    if joint:
        weighted_backward(losses, weights, joint, retain_graph)
    add_to_grad(gradients)
    if gradients and not (own or joint or retain_graph):
        release(tasks.graph, losses)
