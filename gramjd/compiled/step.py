"""`gramjd.compile`: a training step that is first run eagerly, then traced and run as one graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gramjd.aggregation import Coordinatewise, UPGrad
from gramjd.backward import UPDATES, GramStep, check_aggregator, gram_backward
from gramjd.compiled.guards import Batch, Outside, ambient, described, options
from gramjd.compiled.run import MODES
from gramjd.compiled.traced_step import TracedStep
from gramjd.compiled.weights import Handle
from gramjd.engine import _torch
from gramjd.errors import FallbackWarning, InputError, warn
from gramjd.kernels.tracing import TraceError
from gramjd.losses import Losses
from gramjd.multitask import mtl_backward
from gramjd.options import as_choice, as_count

LossFunction = Callable[..., Losses]
# Circumstances of which it is known that they were seen once, and new ones in a row until this is said.
MOST_SEEN, PATIENCE = 1024, 16
# Of a key, in words.
PARTS = ("the batch", "settings of PyTorch", "options of the optimizer", "", "parameters and buffers")


class StepResult(NamedTuple):
    """What a step was made of, detached: `losses` as the function returned them, `weights [m]`, `gramian [m, m]`.

    The last two are None for an aggregator that works on the columns of the Jacobian.
    """

    losses: Any
    weights: Tensor | None
    gramian: Tensor | None


class CompiledStep:
    """What `gramjd.compile` returns: call it with a batch. `graphs` says what was compiled."""

    def __init__(
        self,
        losses_fn: LossFunction,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        aggregator: Any,
        update: str,
        mode: str,
        max_graphs: int,
        check_every: int | None,
        tasks: bool,
        shared: nn.Module | None,
    ) -> None:
        self.losses_fn, self.model, self.optimizer = losses_fn, model, optimizer
        self.aggregator = aggregator if aggregator is not None else UPGrad()
        self.update, self.mode, self.max_graphs, self.check_every = update, mode, max_graphs, check_every
        self.tasks, self.shared = tasks, shared
        self.handle = Handle(self.aggregator)
        self.outside: Outside | None = None
        self._seen: OrderedDict[Hashable, str] = OrderedDict()
        self._graphs: dict[Hashable, TracedStep] = {}
        self._latest: tuple[Hashable, TracedStep | None] = (None, None)
        self._said: set[str] = set()
        # Circumstances that were new, one after the other, and those of the last step.
        self._new_in_a_row, self._last = 0, None

    def __call__(self, *args: Any, **kwargs: Any) -> StepResult:
        """One step on a batch: the arguments of the function of the losses.

        Returns:
            StepResult(losses, weights, gramian).
        """
        try:
            batch = Batch(args, kwargs)
            key = self._key(batch)
        except TraceError as error:
            self._say(str(error))
            return self.eager(*args, **kwargs)
        # Mostly the circumstances of the step before: comparing is cheaper than to look for a hash.
        graph = self._latest[1] if key == self._latest[0] else self._graphs.get(key)
        if graph is not None and graph.holds():
            self._latest = key, graph
            self._new_in_a_row = 0
            return StepResult(*graph(batch))
        return self._without_graph(key, batch, args, kwargs)

    @property
    def graphs(self) -> int:
        """How many graphs were compiled."""
        return len(self._graphs)

    def _key(self, batch: Batch) -> Hashable:
        if self.outside is None:
            self.outside = Outside(self.losses_fn, list(self.model.modules()))
        held = self.outside.tensors()
        return batch.key, ambient(), options(self.optimizer), self.outside.key(), tuple(map(described, held))

    def _without_graph(self, key: Hashable, batch: Batch, args: Any, kwargs: Any) -> StepResult:
        """The first step under these circumstances is eager; with the second there is a graph, or a reason why not."""
        self._latest = None, None
        self._graphs.pop(key, None)  # what it was decided by has changed
        reason = self._seen.get(key)
        if reason is None:
            self.outside = None  # a first forward pass may make attributes
            result = self.eager(*args, **kwargs)
            self._note(self._key(batch))
            return result
        self._new_in_a_row = 0
        if not reason and len(self._graphs) >= self.max_graphs:
            reason = f"has {self.max_graphs} graphs already, which is max_graphs"
        if not reason:
            try:
                return self._compiled(key, batch, args, kwargs)
            except TraceError as error:
                self._seen[key] = reason = self._reason(error)
        self._say(reason)
        return self.eager(*args, **kwargs)

    def _note(self, key: Any) -> None:
        """Remember circumstances, and say so if each step has others."""
        self._seen[key] = ""
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)
        self._new_in_a_row += 1
        last, self._last = self._last, key
        if self._new_in_a_row == PATIENCE and last is not None and self.outside is not None:
            parts = [part for part, a, b in zip(PARTS, key, last, strict=True) if a != b and part]
            parts += self.outside.differing(key[3], last[3])
            self._say(f"finds other circumstances at every step: {', '.join(parts)}")

    def _compiled(self, key: Hashable, batch: Batch, args: Any, kwargs: Any) -> StepResult:
        """Trace, compile, and check the first step."""
        if isinstance(self.aggregator, Coordinatewise):
            raise TraceError(f"has an aggregator that works on the columns of the Jacobian, {self.aggregator!r}")
        assert self.outside is not None, "the key was made of it"
        graph = TracedStep.of(self, batch)
        self.outside.keep()
        result = StepResult(*graph.checked(batch, lambda w: self.eager(*args, **kwargs, _weights=w)))
        self._graphs[key] = graph
        return result

    def descend(self, losses: Losses, aggregator: Any) -> GramStep | None:
        """Fill `.grad`."""
        if self.tasks:
            return mtl_backward(losses, aggregator, shared=self.shared)
        return gram_backward(losses, aggregator, update=self.update)

    def eager(self, *args: Any, _weights: Tensor | None = None, **kwargs: Any) -> StepResult:
        """One step without a graph."""
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        losses = self.losses_fn(*args, **kwargs)
        aggregator = self.aggregator if _weights is None else (lambda _: _weights)
        step = self.descend(losses, aggregator)
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        weights, G = step if step is not None else (None, None)
        return StepResult(detached(losses), weights, G)

    def _reason(self, error: TraceError) -> str:
        return f"{error} (at {error.operation})" if error.operation else str(error)

    def _say(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            warn(f"a compiled step runs eagerly: it {reason}", FallbackWarning)

    def __repr__(self) -> str:
        """The mode, and what was compiled."""
        return f"CompiledStep(mode={self.mode!r}, graphs={self.graphs})"


def detached(losses: Any) -> Any:
    """The same structure without a graph."""
    return _torch.tree_map_only(Tensor, torch.Tensor.detach, losses)


def compile(
    losses_fn: LossFunction,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    aggregator: Any = None,
    *,
    update: str = "reuse",
    mode: str = "default",
    max_graphs: int = 8,
    check_every: int | None = None,
    tasks: bool = False,
    shared: nn.Module | None = None,
) -> CompiledStep:
    """A training step as one graph: forward pass, Gramian, weights, gradient and optimizer.

    The first step with batches of a shape is made eagerly; the second one is traced, compiled, and compared with the
    eager one; the next ones run the graph.

    Args:
        losses_fn: from a batch to losses, as `gram_backward` takes them; uses `model`.
        model: a module; its parameters are trained.
        optimizer: steps on parameters of the model. Without one, `.grad` is added to.
        aggregator: as in `gram_backward`; default `UPGrad()`.
        update: "reuse" or "backward", as in `gram_backward`.
        mode: "default" to compile by Inductor, which needs a C++ compiler; "reduce-overhead" for a CUDA graph of that
            as well; "graph" to run the traced operations one by one, which takes no time to compile.
        max_graphs: shapes for which there may be a graph; others run eagerly.
        check_every: look every so many steps whether `w^T G w = |J^T w|^2` holds for what was computed.
        tasks: make steps as `mtl_backward` does; `shared` is the module whose parameters the tasks share, as there.

    Returns:
        A function of a batch that makes a step, and returns `StepResult(losses, weights, gramian)`.

    Raises:
        InputError: an argument is none of these.
        CompileError: a compiled step differs from the eager one. Nothing was changed then.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> step = compile(lambda x, y: (model(x) - y).square().squeeze(1), model, optimizer, mode="graph")
    >>> for _ in range(3):
    ...     result = step(torch.ones(4, 2), torch.zeros(4, 1))
    >>> result.weights.shape, step.graphs
    (torch.Size([4]), 1)
    """
    as_choice(update, "update", UPDATES)
    as_choice(mode, "mode", MODES)
    if not callable(losses_fn):
        raise InputError(f"losses_fn is a {type(losses_fn).__name__}; expected a function from a batch to losses")
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model is a {type(model).__name__}; expected a module, such as a torch.nn.ModuleList of several"
        )
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"optimizer is a {type(optimizer).__name__}; expected a torch.optim.Optimizer, or None")
    as_count(max_graphs, "max_graphs", 1)
    if check_every is not None:
        as_count(check_every, "check_every", 1)
    if aggregator is not None and not isinstance(aggregator, Coordinatewise):
        check_aggregator(aggregator)
    if shared is not None and not (tasks and isinstance(shared, nn.Module)):
        raise InputError(f"shared is a {type(shared).__name__}, tasks is {tasks}; `shared` is a module of task losses")
    if tasks and check_every:
        raise InputError(
            "check_every holds for one update J^T w; with tasks=True each task's own parameters have another"
        )
    return CompiledStep(losses_fn, model, optimizer, aggregator, update, mode, max_graphs, check_every, tasks, shared)
