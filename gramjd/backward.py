"""The steps: Gramian, weights, and the weighted sum of gradients into `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from gramjd.aggregation import Coordinatewise, UPGrad
from gramjd.aggregation._inner import check_inner
from gramjd.engine import driver
from gramjd.engine.cotangent import Group
from gramjd.engine.factors import Factor
from gramjd.engine.graph import Edge
from gramjd.engine.kept import Kept
from gramjd.engine.task import accumulate, plainly, release
from gramjd.errors import AggregatorError, InputError, LossError
from gramjd.kernels.dispatch import chosen
from gramjd.losses import Inputs, Losses, all_finite, as_inputs, as_losses

Aggregator = Callable[..., Tensor]


UPDATES = ("backward", "reuse")


class GramStep(NamedTuple):
    """What a step was made of: `weights [m]` and `gramian [m, m]`, both detached."""

    weights: Tensor
    gramian: Tensor


@overload
def gram_backward(  # type: ignore[overload-overlap]
    losses: Losses,
    aggregator: Coordinatewise,
    *,
    inputs: Inputs = None,
    gramian_inputs: None = None,
    update: str = "backward",
    retain_graph: bool = False,
    memory_budget: int | None = None,
    backend: str | None = None,
) -> None: ...


@overload
def gram_backward(
    losses: Losses,
    aggregator: Aggregator | None = None,
    *,
    inputs: Inputs = None,
    gramian_inputs: Inputs = None,
    update: str = "backward",
    retain_graph: bool = False,
    memory_budget: int | None = None,
    backend: str | None = None,
) -> GramStep: ...


def gram_backward(
    losses: Losses,
    aggregator: Aggregator | Coordinatewise | None = None,
    *,
    inputs: Inputs = None,
    gramian_inputs: Inputs = None,
    update: str = "backward",
    retain_graph: bool = False,
    memory_budget: int | None = None,
    backend: str | None = None,
) -> GramStep | None:
    """Add `J^T w` with `w = aggregator(J J^T)` to `.grad`, as `losses.backward(w)` would.

    Args:
        losses: a tensor of any shape or a sequence of tensors; m is the number of all their elements.
        aggregator: any function from G [m, m] to w [m]; default `UPGrad()`. One with `takes_losses = True` gets the
            detached losses as well, one that works on coordinates (`gramjd.aggregation.Coordinatewise`) J itself.
        inputs: the tensors whose `.grad` is added to; default: all leaves reached.
        gramian_inputs: the tensors that G is built from; default: `inputs`.
        update: "backward" for a second pass through the graph, with the memory of plain training; "reuse" to form
            `J^T w` from what the walk computed: faster, for about one more copy of the activations
            (`explain(losses).bytes`). The gradients are the same up to rounding. Where "reuse" cannot serve (hooks,
            sparse embeddings, inputs that are no leaves, rows beyond the budget) the second pass is made after all.
        retain_graph: keep the graph for another backward pass, as in PyTorch.
        memory_budget: bytes that stacked rows may take where no batch axis is found, and that "reuse" may keep,
            default a quarter of the memory; and the largest temporary of a layer's products, default a tenth of what a
            plain training step needs.
        backend: "torch", "onednn", "triton" or "auto", as `gramjd.kernels.use_backend` explains; default: the one in
            force.

    Returns:
        GramStep(weights [m], gramian [m, m]), detached; None for a coordinatewise aggregator, which makes neither.

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
    if update not in UPDATES:
        raise InputError(f"update is {update!r}; expected one of {', '.join(map(repr, UPDATES))}")
    aggregator = aggregator if aggregator is not None else UPGrad()
    sources = targets if gramian_inputs is None else as_inputs(gramian_inputs, "gramian_inputs")
    if gramian_inputs is not None and targets is not None:
        driver.check_reached(found, targets)
    if isinstance(aggregator, Coordinatewise):
        if gramian_inputs is not None:
            raise InputError(f"{aggregator!r} makes no Gramian: leave out `gramian_inputs`")
        with chosen(backend):
            _coordinatewise(found, aggregator, targets, retain_graph, memory_budget)
        return None
    check_inner(aggregator, "the aggregator")
    kept: Kept | None = None
    with chosen(backend):
        with _range("walk"):
            if update == "reuse":
                G, kept = driver.compute_and_keep(found, sources, targets, memory_budget)
            else:
                G = driver.compute(found, sources, None, memory_budget)
        with _range("weights"):
            weights = weights_of(aggregator, G, losses)
        with _range("backward"):
            if kept is None:
                weighted_backward(found, weights, targets, retain_graph)
            else:
                _reuse(found, kept, weights, targets, retain_graph)
    return GramStep(weights, G)


def _range(name: str) -> AbstractContextManager[Any]:
    """A range in the recording of a profiler, where one is running: the empty ones cost as much as a small layer."""
    return record_function(f"gramjd::{name}") if torch.autograd._profiler_enabled() else nullcontext()


def _coordinatewise(
    losses: list[Tensor],
    aggregator: Coordinatewise,
    inputs: list[Tensor] | None,
    retain_graph: bool,
    memory_budget: int | None,
) -> None:
    """A step of an aggregator that combines the columns of J."""
    if inputs is not None and not all(t.is_leaf for t in inputs):
        raise InputError(f"{aggregator!r} fills the `.grad` of leaves only; an input is computed from others")

    def combine(columns: Tensor) -> Tensor:
        return _checked_columns(aggregator.combine(columns), columns)

    with _range("walk"), torch.no_grad():
        columns = driver.combine_columns(losses, inputs, combine, memory_budget)
    accumulate(columns.gradients())
    if not retain_graph:
        release(columns.graph, losses)


def _checked_columns(update: Tensor, columns: Tensor) -> Tensor:
    if not isinstance(update, Tensor) or update.shape != columns.shape[1:]:
        got = tuple(update.shape) if isinstance(update, Tensor) else type(update).__name__
        raise AggregatorError(f"`combine` returned {got} for columns {tuple(columns.shape)}; expected one number each")
    if not all_finite(update):
        raise AggregatorError("`combine` returned NaN or infinite numbers; `.grad` was left as it was")
    return update


def _reuse(losses: list[Tensor], kept: Kept, weights: Tensor, inputs: list[Tensor] | None, retain_graph: bool) -> None:
    """The update from what the walk kept, and by a backward pass for what it did not."""
    with plainly():
        gradients = kept.gradients(weights)
    rest = kept.missing(inputs)
    if rest:
        weighted_backward(losses, weights, rest, retain_graph)
    accumulate(gradients)
    if not rest and not retain_graph:
        release(kept.graph, losses)


def weights_of(aggregator: Aggregator, G: Tensor, losses: Losses) -> Tensor:
    """The aggregator's weights, checked."""
    with torch.no_grad():
        extra = (_values(losses),) if getattr(aggregator, "takes_losses", False) else ()
        weights = aggregator(G, *extra)
    m = len(G)
    if not isinstance(weights, Tensor):
        raise AggregatorError(f"the aggregator returned a {type(weights).__name__}; expected a tensor of shape ({m},)")
    if weights.shape != (m,):
        raise AggregatorError(f"the aggregator returned shape {tuple(weights.shape)} for {m} losses; expected ({m},)")
    if weights.device != G.device:
        raise AggregatorError(f"the aggregator returned weights on {weights.device}; expected them on {G.device}")
    if not weights.is_floating_point():
        raise AggregatorError(f"the aggregator returned dtype {weights.dtype}; expected floating point")
    if not all_finite(weights):
        raise AggregatorError("the aggregator returned NaN or infinite weights; `.grad` was left as it was")
    return weights.detach()


def _values(losses: Losses) -> Tensor:
    """The detached losses: in their shape if they are one tensor, else as one vector [m]."""
    if isinstance(losses, Tensor):
        return losses.detach()
    return torch.cat([loss.detach().reshape(-1) for loss in losses])


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
    aggregator = check_inner(aggregator if aggregator is not None else UPGrad(), "the aggregator")
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
    weights = weights_of(aggregator, G, losses)
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

    graph, _, _ = driver.plan(losses, None, lambda _: note)
    return list(graph.targets.values()), [t for e, t in graph.targets.items() if len(owners.get(e, ())) > 1]
