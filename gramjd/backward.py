"""The public functions: Gramian, weights, one weighted backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.aggregation import UPGrad
from gramjd.engine import driver
from gramjd.errors import AggregatorError
from gramjd.losses import Inputs, Losses, as_inputs, as_losses

Aggregator = Callable[[Tensor], Tensor]


class GramStep(NamedTuple):
    """What a step was made of: `weights [m]` and `gramian [m, m]`, both detached."""

    weights: Tensor
    gramian: Tensor


def gramian(losses: Losses, inputs: Inputs = None, *, dtype: torch.dtype | None = None, memory_budget: int | None = None) -> Tensor:
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
    tensor([0.6000, 0.5500])
    >>> w.grad
    tensor([0.1000, 2.2000])
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


def weighted_backward(losses: Sequence[Tensor], weights: Tensor, inputs: Sequence[Tensor] | None, retain_graph: bool) -> None:
    """`losses.backward(weights)` for a list of tensors."""
    parts = weights.split([loss.numel() for loss in losses])
    cotangents = [w.to(loss.dtype).view(loss.shape) for w, loss in zip(parts, losses, strict=True)]
    torch.autograd.backward(list(losses), cotangents, retain_graph=retain_graph, inputs=inputs)
