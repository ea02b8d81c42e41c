"""The public functions: Gramian, weights, one weighted backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.aggregation import UPGrad
from gramjd.engine import driver
from gramjd.engine.cotangent import Group
from gramjd.engine.factors import Factor
from gramjd.engine.graph import Edge
from gramjd.errors import AggregatorError, LossError
from gramjd.losses import Inputs, Losses, as_inputs, as_losses

Aggregator = Callable[[Tensor], Tensor]


class GramStep(NamedTuple):
    """What a step was made of: `weights [m]` and `gramian [m, m]`, both detached."""

    weights: Tensor
    gramian: Tensor


def gramian(
    losses: Losses, inputs: Inputs = None, *, dtype: torch.dtype | None = None, memory_budget: int | None = None
) -> Tensor:
    """`G = J J^T`, where row i of J is the gradient of loss i.

    Args:
        losses: a tensor of any shape or a sequence of tensors; m is the number of all their elements.
        inputs: the tensors that J differentiates by (leaves or not); default: all leaves that the losses reach.
        dtype: what G is accumulated in; default float32, or float64 where a loss or an input is.
        memory_budget: bytes that stacked rows may take where no batch axis is found; default a quarter of the memory.

    Returns:
        G [m, m], symmetric, detached. The graph stays usable.

    Raises:
        LossError: losses that are empty, not finite, not real floating point, or do not require grad.
        InputError: an input that no loss reaches.
        BudgetError: not even two losses fit the budget.

    Source: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, section 6.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> gramian(w**2)
    tensor([[ 4.,  0.],
            [ 0., 16.]])
    """
    return driver.compute(as_losses(losses), as_inputs(inputs), dtype, memory_budget)


def gram_backward(
    losses: Losses,
    aggregator: Aggregator | None = None,
    *,
    inputs: Inputs = None,
    gramian_inputs: Inputs = None,
    retain_graph: bool = False,
    memory_budget: int | None = None,
) -> GramStep:
    """Add `J^T w` with `w = aggregator(J J^T)` to `.grad`, as `losses.backward(w)` would.

    Args:
        losses: a tensor of any shape or a sequence of tensors; m is the number of all their elements.
        aggregator: any function from G [m, m] to w [m]; default `UPGrad()`.
        inputs: the tensors whose `.grad` is added to; default: all leaves reached.
        gramian_inputs: the tensors that G is built from; default: `inputs`.
        retain_graph: keep the graph for another backward pass, as in PyTorch.
        memory_budget: bytes that stacked rows may take where no batch axis is found; default a quarter of the memory.

    Returns:
        GramStep(weights [m], gramian [m, m]), detached.

    Raises:
        LossError, InputError, BudgetError: as `gramian` does.
        AggregatorError: weights of the wrong type, shape, device or dtype, or not finite.
        RuntimeError: from PyTorch, for a freed graph or tensors modified in place.
        In every case `.grad` is left as it was.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> step = gram_backward(torch.stack([w[0] ** 2, (w[0] - 2) ** 2 + w[1] ** 2]))
    >>> step.weights
    tensor([1.0000, 0.6000])
    >>> w.grad
    tensor([0.8000, 2.4000])
    """
    found, targets = as_losses(losses), as_inputs(inputs)
    sources = targets if gramian_inputs is None else as_inputs(gramian_inputs, "gramian_inputs")
    if gramian_inputs is not None and targets is not None:
        driver.check_reached(found, targets)
    G = driver.compute(found, sources, None, memory_budget)
    weights = weights_of(aggregator if aggregator is not None else UPGrad(), G)
    weighted_backward(found, weights, targets, retain_graph)
    return GramStep(weights, G)


def weights_of(aggregator: Aggregator, G: Tensor) -> Tensor:
    """The aggregator's weights, checked."""
    with torch.no_grad():
        weights = aggregator(G)
    m = len(G)
    if not isinstance(weights, Tensor):
        raise AggregatorError(f"the aggregator returned a {type(weights).__name__}; expected a tensor of shape ({m},)")
    if weights.shape != (m,):
        raise AggregatorError(f"the aggregator returned shape {tuple(weights.shape)} for {m} losses; expected ({m},)")
    if weights.device != G.device:
        raise AggregatorError(f"the aggregator returned weights on {weights.device}; expected them on {G.device}")
    if not weights.is_floating_point():
        raise AggregatorError(f"the aggregator returned dtype {weights.dtype}; expected floating point")
    if not bool(torch.isfinite(weights).all()):
        raise AggregatorError("the aggregator returned NaN or infinite weights; `.grad` was left as it was")
    return weights.detach()


def weighted_backward(
    losses: Sequence[Tensor], weights: Tensor, inputs: Sequence[Tensor] | None, retain_graph: bool
) -> None:
    """`losses.backward(weights)` for a list of tensors."""
    parts = weights.split([loss.numel() for loss in losses])
    cotangents = [w.to(loss.dtype).view(loss.shape) for w, loss in zip(parts, losses, strict=True)]
    torch.autograd.backward(list(losses), cotangents, retain_graph=retain_graph, inputs=inputs)


def mtl_backward(
    losses: Losses, aggregator: Aggregator | None = None, *, shared: Inputs = None, retain_graph: bool = False
) -> GramStep:
    """Multi-task step: shared parameters get `J^T w`, every other parameter the plain gradient of its own loss.

    Args:
        losses: one scalar a task (a tensor [m] or a sequence of scalars).
        aggregator: any function from G [m, m] to w [m]; default `UPGrad()`. G is built from the shared parameters.
        shared: the parameters that get the weighted combination; default: all leaves that more than one loss reaches.
            Others that several losses reach after all get the sum of their gradients.
        retain_graph: keep the graph for another backward pass, as in PyTorch.

    Returns:
        GramStep(weights [m], gramian [m, m]). With nothing shared G is zero.

    Raises:
        LossError: also for a task whose loss has more than one element.
        InputError, AggregatorError, RuntimeError: as `gram_backward` does, with `.grad` left as it was.

    >>> trunk, heads = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    >>> step = mtl_backward([heads[0] * trunk.sum(), -2 * heads[1] * trunk[0]], shared=trunk)
    >>> step.gramian
    tensor([[ 2., -2.],
            [-2.,  4.]])
    >>> heads.grad
    tensor([ 2., -2.])
    """
    found = as_losses(losses)
    if not isinstance(losses, Tensor) and any(loss.numel() > 1 for loss in found):
        sizes = [tuple(loss.shape) for loss in found]
        raise LossError(f"each task needs one scalar loss; got shapes {sizes}: reduce them, or use gram_backward")
    targets = as_inputs(shared, "shared")
    leaves, common = _reached(found)
    if targets is not None:
        driver.check_reached(found, targets)
    joint = common if targets is None else targets
    inside = {id(t) for t in joint}
    own = [leaf for leaf in leaves if id(leaf) not in inside]
    m = sum(loss.numel() for loss in found)
    G = driver.compute(found, joint, None, None) if joint else found[0].new_zeros(m, m).detach()
    weights = weights_of(aggregator if aggregator is not None else UPGrad(), G)
    if own:
        weighted_backward(found, torch.ones_like(weights), own, retain_graph or bool(joint))
    if joint:
        weighted_backward(found, weights, joint, retain_graph)
    return GramStep(weights, G)


def _reached(losses: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """All leaves, and those whose rows belong to more than one loss."""
    owners: dict[Edge, set[int]] = {}

    def note(edge: Edge, groups: list[Group], factors: list[Factor]) -> None:
        rows = [*(g.layout.rows for g in groups), *(f.rows for f in factors)]
        owners[edge] = {int(i) for r in rows for i in r.reshape(-1) if i >= 0}

    graph, _, _ = driver.plan(losses, None, note)
    return list(graph.targets.values()), [t for e, t in graph.targets.items() if len(owners.get(e, ())) > 1]
