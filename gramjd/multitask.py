"""The step of several tasks: shared parameters get the weighted sum of gradients, the others their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gramjd.aggregation import UPGrad
from gramjd.backward import Aggregator, GramStep, check_aggregator, restoring, weighted_backward, weights_of
from gramjd.engine import compute
from gramjd.engine._torch import uncompiled
from gramjd.engine.graph import Edge
from gramjd.engine.parameter import Jacobian
from gramjd.errors import LossError, graph_errors
from gramjd.losses import Inputs, Losses, as_inputs, as_named
from gramjd.renamed import MTL_WORDS, foreign_words


@uncompiled
@foreign_words(MTL_WORDS)
def mtl_backward(
    losses: Losses, aggregator: Aggregator | None = None, *, shared: Inputs = None, retain_graph: bool = False
) -> GramStep:
    """Multi-task step: shared parameters get `J^T w`, every other parameter the plain gradient of its own loss.

    Args:
        losses: one scalar per task (a tensor [m], a sequence of scalars, or a mapping from names to scalars).
        aggregator: any function from G [m, m] to w [m]; default `UPGrad()`. G is built from the shared parameters.
        shared: the parameters that get the weighted combination, or a module; default: all parameters that more than
            one loss reaches (all leaves, where there is no `nn.Parameter`). Other leaves that several losses reach get
            the sum of their gradients.
        retain_graph: keep the graph for another backward pass, as in PyTorch.

    Returns:
        GramStep(weights [m], gramian [m, m]). With nothing shared G is zero.

    Raises:
        LossError: also for a task whose loss has more than one element.
        InputError, GraphError, AggregatorError, RuntimeError: as `gram_backward` does; what it says of `.grad` holds
        for both passes together.

    >>> trunk, heads = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    >>> step = mtl_backward([heads[0] * trunk.sum(), -2 * heads[1] * trunk[0]], shared=trunk)
    >>> step.gramian
    tensor([[ 2., -2.],
            [-2.,  4.]])
    >>> heads.grad
    tensor([ 2., -2.])
    """
    names, losses, found = as_named(losses)
    aggregator = aggregator if aggregator is not None else UPGrad()
    check_aggregator(aggregator)
    _check_tasks(losses, found)
    targets = as_inputs(shared, "shared")
    with graph_errors():
        leaves, common = _reached(found)
        if targets is not None:
            compute.check_reached(found, targets)
        joint = common if targets is None else targets
        inside = {id(t) for t in joint}
        own = [leaf for leaf in leaves if id(leaf) not in inside]
        m = sum(loss.numel() for loss in found)
        G = compute.total(found, joint, None, None) if joint else found[0].new_zeros(m, m).detach()
        weights = weights_of(aggregator, G, losses, names=names)
        with restoring([*own, *joint]):
            if own:
                weighted_backward(found, torch.ones_like(weights), own, retain_graph or bool(joint))
            if joint:
                weighted_backward(found, weights, joint, retain_graph)
    return GramStep(weights, G, names)


def _check_tasks(losses: Losses, found: Sequence[Tensor]) -> None:
    """Raise unless there is one scalar loss per task."""
    single = isinstance(losses, Tensor)
    if any(loss.ndim > 1 if single else loss.numel() > 1 for loss in found):
        sizes = ", ".join(str(tuple(loss.shape)) for loss in found)
        raise LossError(
            f"each task needs one scalar loss, as a tensor [m] or a sequence of m scalars; got {sizes}: reduce over "
            "the samples, or use gram_backward"
        )


def _reached(losses: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """All leaves, and those whose rows belong to more than one loss."""
    owners: dict[Edge, set[int]] = {}

    def note(edge: Edge, jacobian: Jacobian) -> None:
        owners[edge] = jacobian.losses()

    graph = compute.read(losses, None)
    compute.plan(graph, losses, note)
    return list(graph.leaves.values()), [t for e, t in graph.targets.items() if len(owners.get(e, ())) > 1]
