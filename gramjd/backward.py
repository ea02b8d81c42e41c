"""The step: Gramian, weights, and the weighted sum of gradients into `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from gramjd.aggregation import Coordinatewise, UPGrad
from gramjd.aggregation._foreign import refuse_foreign
from gramjd.aggregation._inner import check_inner
from gramjd.aggregation._weighting import Weighting
from gramjd.engine import compute, dtensor
from gramjd.engine._torch import profiler_runs, uncompiled
from gramjd.engine.autograd import add_to_grad, plainly, release
from gramjd.engine.consumers.update import Kept
from gramjd.engine.graph import Graph, several_processes
from gramjd.errors import AggregatorError, FallbackWarning, InputError, RanksWarning, graph_errors, warn
from gramjd.kernels.dispatch import chosen
from gramjd.lazy import no_function
from gramjd.losses import Given, Inputs, Losses, all_finite, as_budget, as_inputs, as_named, as_scale
from gramjd.options import as_choice
from gramjd.renamed import NAMES, STEP_WORDS, foreign_words
from gramjd.step import GramStep

no_function(__name__, NAMES["backward"])

Aggregator = Callable[..., Tensor]


UPDATES = ("backward", "reuse")
NONFINITE = ("raise", "pass")


@overload
def gram_backward(  # type: ignore[overload-overlap]
    losses: Losses,
    aggregator: Coordinatewise,
    *,
    inputs: Inputs = None,
    gramian_inputs: None = None,
    update: str = "backward",
    nonfinite: str = "raise",
    retain_graph: bool = False,
    memory_budget: int | None = None,
    backend: str | None = None,
    scale: float = 1.0,
) -> None: ...


@overload
def gram_backward(
    losses: Losses,
    aggregator: Aggregator | None = None,
    *,
    inputs: Inputs = None,
    gramian_inputs: Inputs = None,
    update: str = "backward",
    nonfinite: str = "raise",
    retain_graph: bool = False,
    memory_budget: int | None = None,
    backend: str | None = None,
    scale: float = 1.0,
    group: Any = None,
    across: str = "stack",
) -> GramStep: ...


@uncompiled
@foreign_words(STEP_WORDS)
def gram_backward(
    losses: Losses,
    aggregator: Aggregator | Coordinatewise | None = None,
    *,
    inputs: Inputs = None,
    gramian_inputs: Inputs = None,
    update: str = "backward",
    nonfinite: str = "raise",
    retain_graph: bool = False,
    memory_budget: int | None = None,
    backend: str | None = None,
    scale: float = 1.0,
    group: Any = None,
    across: str = "stack",
) -> GramStep | None:
    """Add `J^T w` with `w = aggregator(J J^T)` to `.grad`, as `losses.backward(w)` would.

    Args:
        losses: a tensor of any shape, a sequence of tensors, or a mapping from names to tensors (None for one that is
            missing in this batch); m is the number of all their elements.
        aggregator: any function from G [m, m] to w [m]; default `UPGrad()`. One with `takes_losses = True` gets the
            detached losses as well, one with `takes_names = True` their names (`gramjd.ByName`), one that works on
            coordinates (`gramjd.aggregation.Coordinatewise`) J itself.
        inputs: the tensors whose `.grad` is added to, or a module; default: all leaves reached.
        gramian_inputs: the tensors that G is built from, or a module, as `inputs` of `gramian`; default: `inputs`, and
            where those are left out the parameters that the losses reach.
        update: "backward" for a second pass through the graph, with the memory of plain training; "reuse" to form
            `J^T w` from what the walk computed: faster, for about one more copy of the activations
            (`explain(losses).bytes`). The gradients are the same up to rounding. Where "reuse" cannot serve (hooks,
            sparse embeddings, inputs that are no leaves, rows beyond the budget, several processes) the second pass is
            made after all. Only a second pass fills what `retain_grad` asks for. Under a selective checkpoint, which
            allows one pass, it is always "reuse".
        nonfinite: "raise" for an error where losses, G or weights are not finite; "pass" to fill `.grad` with NaN then,
            so that `torch.amp.GradScaler` skips the step and lowers its scale.
        retain_graph: keep the graph for another backward pass, as in PyTorch.
        memory_budget: bytes that stacked rows may take where no batch axis is found, and that "reuse" may keep,
            default a quarter of the memory; and the largest temporary of a layer's products, default a tenth of what a
            plain training step needs.
        backend: what `gramjd.kernels.use_backend` takes; default: what is in force.
        scale: the number above 0 that the losses were multiplied by, such as `scaler.get_scale()`. Weights and G are
            those of the losses themselves, and `.grad` is `scale` times their update. Aggregators whose weights depend
            on the size of the gradients need it (`aggregator.scale_free` is False).
        group: a `torch.distributed` process group whose ranks all make this call, for one Gramian over the losses of
            all of them, in the order of the ranks: `.grad` is then, on each, as one process with all losses would have
            it. A rank may have another number of losses, or an empty tensor; pass `inputs` then. With
            DistributedDataParallel pass the wrapper as `inputs`. Default: the losses of this process alone.
        across: with a `group`, "stack" where each rank has losses of its own; "mean" where loss i is the mean over
            ranks of each one's loss i, such as a task's on its part of the data: G is [m, m] then.

    Returns:
        GramStep(weights [m], gramian [m, m]), detached, with `names`; with a `group` of all ranks' losses. None for a
        coordinatewise aggregator, which makes neither.

    Raises:
        LossError, InputError, BudgetError, GraphError: as `gramian` does.
        AggregatorError: weights of the wrong type, shape, device or dtype, or not finite; or an aggregator that is
            known to take a Jacobian.
        RankError: with a `group`, what any of its ranks raised, on all of them.
        RuntimeError: from PyTorch, or what a hook or a custom function raises.
        In every case `.grad` is left as it was, but for one: where the second pass itself fails, `.grad` that was None
        is None again, and one that held a gradient before keeps what was added to it until then.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> step = gram_backward(torch.stack([w[0] ** 2, (w[0] - 2) ** 2 + w[1] ** 2]))
    >>> step.weights
    tensor([1.0000, 0.6000])
    >>> w.grad
    tensor([0.8000, 2.4000])
    """
    if group is not None:
        from gramjd.distributed.step import group_backward

        return group_backward(
            losses,
            aggregator,
            group,
            inputs=inputs,
            gramian_inputs=gramian_inputs,
            update=update,
            nonfinite=nonfinite,
            retain_graph=retain_graph,
            memory_budget=memory_budget,
            backend=backend,
            scale=scale,
            across=across,
        )
    if across != "stack":
        raise InputError(f"across is {across!r}, which is about the ranks of a `group`: give one")
    as_choice(update, "update", UPDATES)
    as_choice(nonfinite, "nonfinite", NONFINITE)
    scale, strict = as_scale(scale), nonfinite == "raise"
    names, losses, found = as_named(losses, strict)
    targets: list[Tensor] | None = as_inputs(inputs)
    memory_budget = as_budget(memory_budget)
    aggregator = aggregator if aggregator is not None else UPGrad()
    sources = targets if gramian_inputs is None else as_inputs(gramian_inputs, "gramian_inputs")
    if gramian_inputs is not None and targets is not None:
        compute.check_reached(found, targets)
    if isinstance(aggregator, Coordinatewise):
        if gramian_inputs is not None:
            raise InputError(f"{aggregator!r} makes no Gramian: leave out `gramian_inputs`")
        _say_that_it_is_local(None)
        with chosen(backend), graph_errors():
            _coordinatewise(found, aggregator, targets, retain_graph, memory_budget, strict, scale)
        return None
    check_aggregator(aggregator)
    with chosen(backend), graph_errors():
        with _range("walk"):
            graph, G, kept = _gramian(found, sources, targets, update, memory_budget, strict)
        with _range("weights"):
            G = G if scale == 1 else G / scale / scale
            weights = weights_of(aggregator, G, losses, strict, names, scale)
            if graph.mesh is not None:  # they may be drawn at random
                weights = dtensor.alike(weights, graph.mesh)
        leaves = list(graph.leaves.values()) if targets is None else targets
        if graph.sharded is not None:
            leaves = [*leaves, *graph.sharded.shards.values()]
            targets = None if targets is None else graph.sharded.leaves_for(targets)
        with _range("backward"), restoring(leaves):
            if kept is None:
                weighted_backward(found, weights, targets, retain_graph)
            else:
                _reuse(found, kept, weights, targets, retain_graph)
    return GramStep(weights, G, names)


def _gramian(
    losses: list[Tensor],
    sources: list[Tensor] | None,
    targets: list[Tensor] | None,
    update: str,
    memory_budget: int | None,
    strict: bool,
) -> tuple[Graph, Tensor, Kept | None]:
    """The graph, G, and what the update can be made of instead of a second pass."""
    reuse = update == "reuse" and may_reuse()
    graph = compute.read(losses, sources, everything=reuse, spread=True)
    if reuse and graph.spread:  # gradients are reduced in a backward pass
        reuse, graph = False, compute.read(losses, sources, spread=True)
    if not reuse and not graph.spread and graph.selective and not several_processes():  # it can be gone through once
        reuse, graph = True, compute.read(losses, sources, everything=True)
    _say_that_it_is_local(graph.mesh)
    if not strict and not all(all_finite(loss.detach()) for loss in losses):
        return graph, compute.unknown(graph, losses), None
    if not reuse:
        return graph, compute.total_of(graph, losses, None, memory_budget), None
    return graph, *compute.gramian_and_rows(graph, losses, targets, memory_budget)


def _say_that_it_is_local(mesh: Any) -> None:
    """Say once that losses of other processes do not count, where there are any that are not of the model's mesh."""
    if several_processes() and (mesh is None or mesh.size() < torch.distributed.get_world_size()):
        warn(
            "there are several processes, and the Gramian is that of the losses of this one: what conflicts with the "
            "losses of another is not seen. Pass group=torch.distributed.group.WORLD for one Gramian over all of them",
            RanksWarning,
        )


def check_aggregator(aggregator: Aggregator) -> None:
    """Raise for what is no function of a Gramian, as far as can be told before it is called."""
    check_inner(aggregator, "the aggregator")
    refuse_foreign(aggregator)


def may_reuse() -> bool:
    """Returns False, with a warning, where gradients are reduced over processes by hooks on accumulation."""
    if not several_processes():
        return True
    warn(
        'update="reuse" is done by a second backward pass here: there are several processes, and '
        "DistributedDataParallel reduces gradients in a backward pass only",
        FallbackWarning,
    )
    return False


@contextmanager
def restoring(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Where the block fails, set every `.grad` to None that was None before."""
    empty = [leaf for leaf in leaves if (leaf.is_leaf or leaf.retains_grad) and leaf.grad is None]
    try:
        yield
    except BaseException:
        for leaf in empty:
            leaf.grad = None
        raise


def _range(name: str) -> AbstractContextManager[Any]:
    """A range in the recording of a profiler, where one is running: the empty ones cost as much as a small layer."""
    return record_function(f"gramjd::{name}") if profiler_runs() else nullcontext()


def _coordinatewise(
    losses: list[Tensor],
    aggregator: Coordinatewise,
    inputs: list[Tensor] | None,
    retain_graph: bool,
    memory_budget: int | None,
    strict: bool,
    scale: float,
) -> None:
    """A step of an aggregator that combines the columns of J."""
    if inputs is not None and not all(t.is_leaf for t in inputs):
        raise InputError(f"{aggregator!r} fills the `.grad` of leaves only; an input is computed from others")

    def combine(columns: Tensor) -> Tensor:
        if not strict and not all_finite(columns):
            return torch.full_like(columns[0], torch.nan)
        if scale != 1:
            return _checked_columns(aggregator.combine(columns / scale) * scale, columns)
        return _checked_columns(aggregator.combine(columns), columns)

    with _range("walk"), torch.no_grad():
        columns = compute.combine_columns(losses, inputs, combine, memory_budget)
    add_to_grad(columns.gradients())
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
    add_to_grad(gradients)
    if not rest and not retain_graph:
        release(kept.graph, losses)


def weights_of(
    aggregator: Aggregator,
    G: Tensor,
    losses: Given,
    strict: bool = True,
    names: Sequence[str] | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The aggregator's weights, checked; NaN where `strict` is False and G or the weights are not finite.

    `scale`: that of the losses, whose G was divided by its square.
    """
    m = len(G)
    if not strict and not all_finite(G):
        return torch.full_like(G[0], torch.nan)
    with torch.no_grad():
        extra = (_values(losses) / scale,) if getattr(aggregator, "takes_losses", False) else ()
        named = {"names": names} if getattr(aggregator, "takes_names", False) else {}
        # A function of the user's may write to what it is given; the Gramian is returned as it is.
        with _called(aggregator, m):
            weights = aggregator(G if isinstance(aggregator, Weighting) else G.clone(), *extra, **named)
    if not isinstance(weights, Tensor):
        raise AggregatorError(f"the aggregator returned a {type(weights).__name__}; expected a tensor of shape ({m},)")
    if weights.shape != (m,):
        raise AggregatorError(f"the aggregator returned shape {tuple(weights.shape)} for {m} losses; expected ({m},)")
    if weights.device != G.device:
        raise AggregatorError(f"the aggregator returned weights on {weights.device}; expected them on {G.device}")
    if not weights.is_floating_point():
        raise AggregatorError(f"the aggregator returned dtype {weights.dtype}; expected floating point")
    if strict and not all_finite(weights):
        raise AggregatorError("the aggregator returned NaN or infinite weights; `.grad` was left as it was")
    return weights.detach()


@contextmanager
def _called(aggregator: Aggregator, m: int) -> Iterator[None]:
    """Say of a module that fails in the block that it was called as an aggregator: it may be the model."""
    try:
        yield
    except Exception as error:
        if isinstance(aggregator, torch.nn.Module):
            error.add_note(
                f"{type(aggregator).__name__} was called as the aggregator, with G [{m}, {m}]. Is it the model? That "
                "is inputs=model, or left out"
            )
        raise


def _values(losses: Given) -> Tensor:
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
