"""One graph of a step: what goes in, what comes out, and where that belongs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from gramjd.compiled import _compilers, check
from gramjd.compiled.guards import Batch
from gramjd.compiled.held import Held, replaced, unchanged
from gramjd.compiled.optimizer import rates, traceable
from gramjd.compiled.run import RUNNERS, draws
from gramjd.compiled.simplify import reshaped
from gramjd.compiled.trace import Traced, trace
from gramjd.engine import _torch
from gramjd.engine import graph as graphs
from gramjd.engine.autograd import add_to_grad, casts, plainly
from gramjd.kernels.dispatch import current_backend, use_backend
from gramjd.kernels.products import library_fixed
from gramjd.kernels.tracing import TraceError
from gramjd.losses import as_given

if TYPE_CHECKING:
    from gramjd.compiled.step import CompiledStep


class Outputs(NamedTuple):
    """How the flat outputs of a graph are to be read: counts of losses, gradients and buffers that were replaced."""

    losses: int
    spec: Any
    trained: list[int]
    rebound: list[int]


def _squared_norm(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack([g.detach().double().square().sum() for g in gradients]).sum()


class _StridesError(Exception):
    """An operation gave other strides than PyTorch foretold."""


class TracedStep:
    """A step under fixed circumstances as a function of a batch."""

    def __init__(self, step: CompiledStep, held: Held, batch: Batch, steps: bool) -> None:
        self.step, self.held, self.steps = step, held, steps
        self.backend = current_backend()
        self.places = held.places
        # An optimizer would go on with these if another parameter took the place of one.
        self._originals = [place.tensor for place in held.parameters]
        self.state = held.state() if steps else []
        self._rates = rates(step.optimizer) if steps else []
        device = next((place.tensor.device for place in held.parameters), None)
        self.rates = [torch.tensor(rate, dtype=torch.float64, device=device) for rate in self._rates]
        self._state_of = None if step.optimizer is None else step.optimizer.state
        self._outputs: Outputs | None = None
        self._steps_made = 0
        # Whether the squared norm of the update is an output.
        self._squared = bool(step.check_every)
        inputs = self._inputs(batch)
        self._traced = self._trace(batch, inputs)
        self.draws = step.mode != "graph" and draws(self._traced.graph)
        if self.draws and not (self._squared or step.tasks):
            self._squared = True
            self._traced = self._trace(batch, inputs)
        self._run = self._runner(self._traced, inputs)
        # Compiled code reads no setting; functions of this library do.
        alone = step.mode == "default" and not casts() and not _own_functions(self._traced.graph)
        self._settings: Callable[[], AbstractContextManager[Any]] = torch.no_grad if alone else self._with_settings

    @classmethod
    def of(cls, step: CompiledStep, batch: Batch) -> TracedStep:
        """The graph with the optimizer's step in it, or where that cannot be traced without.

        Raises:
            TraceError: the step cannot be traced.
        """
        held = Held(step.model, step.optimizer)
        _check(held, batch)
        if step.optimizer is None or _compilers.optimizer_hooks(step.optimizer):
            return cls(step, held, batch, False)
        try:
            return cls(step, held, batch, True)
        except TraceError:
            return cls(step, held, batch, False)

    # -- tracing ------------------------------------------------------------------------------------------------------

    def _trace(self, batch: Batch, inputs: Sequence[Tensor], copies: bool = False) -> Traced:
        first = len(self.held.parameters)
        constants = [
            (first + n, place.tensor)
            for n, place in enumerate(self.held.buffers)
            if not place.tensor.is_floating_point() and not place.tensor.is_complex()
        ]
        modules = self.step.outside.modules if self.step.outside is not None else self.held.modules

        def program(*given: Tensor) -> list[Tensor]:
            with unchanged(modules, strict=True):
                return self._program(batch, given)

        compiled = self.step.mode != "graph"
        return trace(program, inputs, constants, donates=not (compiled or copies), shorter=not compiled)

    def _program(self, batch: Batch, given: Sequence[Tensor]) -> list[Tensor]:
        """The step on the tensors of a trace: the losses, G, the weights, gradients, buffers that were replaced."""
        parameters, buffers, state, given_rates, data = self._split(given)
        leaves = [
            nn.Parameter(t, requires_grad=place.tensor.requires_grad)
            for t, place in zip(parameters, self.held.parameters, strict=True)
        ]
        before = [place.tensor for place in self.held.parameters]
        with torch.enable_grad(), replaced(self.places, [*leaves, *buffers]):
            args, kwargs = batch.rebuilt(data)
            losses = as_given(self.step.losses_fn(*args, **kwargs))
            rebound = [n for n, place in enumerate(self.held.buffers) if place.tensor is not buffers[n]]
            renewed = [self.held.buffers[n].tensor for n in rebound]
            flat, spec = _torch.tree_flatten(losses)
            _refuse_foreign_leaves(flat, leaves)
            done = self.step.descend(losses, self.step.handle)
            assert done is not None, "a handle is a function of a Gramian"
            trained = [n for n, leaf in enumerate(leaves) if leaf.grad is not None]
            gradients = [leaves[n].grad for n in trained]
            if self.steps:
                assert self.step.optimizer is not None, "there is one to step"
                stand_ins = {id(was): leaf for was, leaf in zip(before, leaves, strict=True)}
                own = {id(place.tensor): t for place, t in zip(self.state, state, strict=True)}
                with traceable(self.step.optimizer, stand_ins, own, given_rates):
                    self.step.optimizer.step()
        shown = [] if self.steps else [g for g in gradients if g is not None]
        extra = [_squared_norm([g for g in gradients if g is not None])] if self._squared else []
        self._outputs = Outputs(len(flat), spec, trained, rebound)
        return [*(loss.detach() for loss in flat), done.weights, done.gramian, *renewed, *shown, *extra]

    def _split(self, given: Sequence[Tensor]) -> list[list[Tensor]]:
        sizes = [len(self.held.parameters), len(self.held.buffers), len(self.state), len(self.rates)]
        parts, rest = [], list(given)
        for size in sizes:
            parts.append(rest[:size])
            rest = rest[size:]
        return [*parts, rest]

    def _inputs(self, batch: Batch) -> list[Tensor]:
        tensors = [place.home[place.name] for place in self.places]
        return [*[t.detach() for t in tensors], *[place.tensor for place in self.state], *self.rates, *batch.tensors]

    def _runner(self, traced: Traced, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Any]]:
        with self._with_settings():
            return RUNNERS[self.step.mode](traced.graph, inputs, len(self.places) + len(self.state))

    # -- running ------------------------------------------------------------------------------------------------------

    def holds(self) -> bool:
        """Returns True if the same parameters are trained, and nothing that the graph was decided by has changed."""
        same = all(place.tensor is p for place, p in zip(self.held.parameters, self._originals, strict=True))
        return same and self._traced.holds()

    def _with_settings(self) -> AbstractContextManager[Any]:
        stack = plainly()
        stack.enter_context(use_backend(self.backend))
        stack.enter_context(library_fixed())
        return stack

    def __call__(self, batch: Batch) -> tuple[Any, Tensor, Tensor]:
        """One step: losses, weights, Gramian."""
        step, found = self.step, self._outputs
        assert found is not None, "set by the trace"
        self._refresh()
        with self._settings():
            out = list(self._run(*self._inputs(batch)))
        flat, rest = out[: found.losses], out[found.losses :]
        weights, G, *rest = rest
        for n, tensor in zip(found.rebound, rest, strict=False):
            self.held.buffers[n].put(tensor)
        self._apply(rest[len(found.rebound) :])
        self._steps_made += 1
        if step.check_every and self._steps_made % step.check_every == 0:
            self._check_norm(flat, weights, G, rest[-1])
        return _torch.tree_unflatten(flat, found.spec), weights, G

    def _refresh(self) -> None:
        """Read the rates again, and where the state is kept, which loading a checkpoint replaces."""
        optimizer = self.step.optimizer
        if optimizer is None or not self.steps:
            return
        now = rates(optimizer)
        if now != self._rates:
            for tensor, rate in zip(self.rates, now, strict=True):
                tensor.fill_(rate)
            self._rates = now
        state = optimizer.state
        if self._state_of is not state:
            self.state, self._state_of = self.held.state(), state

    def _apply(self, rest: Sequence[Tensor]) -> None:
        optimizer = self.step.optimizer
        parameters = [place.tensor for place in self.held.parameters]
        if optimizer is not None:
            if any(p.grad is not None for p in parameters):
                optimizer.zero_grad()
            if self.steps:
                _compilers.mark_stepped(optimizer)
                return
        assert self._outputs is not None, "set by the trace"
        add_to_grad((parameters[n], g) for n, g in zip(self._outputs.trained, rest, strict=False))
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    # -- trust --------------------------------------------------------------------------------------------------------

    def checked(self, batch: Batch, eager: Callable[[Tensor], Any]) -> tuple[Any, Tensor, Tensor]:
        """The first step, made once compiled and once eagerly with the same weights; what remains is the eager one.

        Raises:
            CompileError: they differ; everything is as before the step.
        """
        try:
            return self._checked(batch, eager)
        except _StridesError:
            self._traced = self._trace(batch, self._inputs(batch), copies=True)
            self._run = reshaped(self._traced.graph).forward
            return self._checked(batch, eager)

    def _checked(self, batch: Batch, eager: Callable[[Tensor], Any]) -> tuple[Any, Tensor, Tensor]:
        parameters = [place.tensor for place in self.held.parameters]
        held = [*parameters, *[place.tensor for place in (*self.held.buffers, *self.held.state())], *batch.tensors]
        gradients = [p.grad for p in parameters]
        try:
            buffers = [place.tensor for place in self.held.buffers]
            with check.undone(held) as before, replaced(self.held.buffers, buffers), self.held.same_state():
                _put_gradients(parameters, [None] * len(parameters))
                found = self._first(batch)
                mine = check.Outcome(_flat(found[0]), found[2], self._changes(before))
            with check.undone_on_error(held, before):
                _put_gradients(parameters, [None] * len(parameters))
                done = eager(found[1])
                theirs = check.Outcome(_flat(done.losses), done.gramian, self._changes(before))
                check.compare(mine, theirs, self._tolerance(parameters, theirs.losses), self._described)
        except BaseException:
            _put_gradients(parameters, gradients)
            raise
        for p, was in zip(parameters, gradients, strict=True):
            if was is not None and self.step.optimizer is None:
                p.grad = was if p.grad is None else was.add_(p.grad)
        return done.losses, found[1], done.gramian

    def _check_norm(self, losses: Sequence[Tensor], weights: Tensor, G: Tensor, squared: Tensor) -> None:
        tolerance = self._tolerance([place.tensor for place in self.held.parameters], losses)
        check.invariant(weights, G, squared, tolerance, self._described)

    def _first(self, batch: Batch) -> tuple[Any, Tensor, Tensor]:
        """The first step of the graph, of which all numbers are compared.

        A compiler draws other random numbers. So where there are any, it is the graph that is compared, and of what was
        compiled the squared norm of the update.
        """
        try:
            if not self.draws:
                return self(batch)
            run = self._run
            if self._squared:
                with check.undone([*[p.tensor for p in self.places], *[p.tensor for p in self.held.state()]]):
                    flat = self._outputs.losses if self._outputs is not None else 0
                    with self._settings():
                        out = list(run(*self._inputs(batch)))
                    self._check_norm(out[:flat], out[flat], out[flat + 1], out[-1])
            try:
                self._run = self._traced.graph.forward
                return self(batch)
            finally:
                self._run = run
        except RuntimeError as error:
            if "view size is not compatible" not in str(error) or self.step.mode != "graph":
                raise
            raise _StridesError from None

    def _changes(self, before: Sequence[Tensor]) -> dict[str, Tensor]:
        """By name: what was added to parameters and buffers, or the gradients where there is no optimizer."""
        found = {}
        for n, (name, place) in enumerate(zip(self.held.names(), self.places, strict=True)):
            if not place.tensor.is_floating_point():
                continue
            if self.step.optimizer is None and n < len(self.held.parameters):
                if place.tensor.grad is not None:
                    found[name] = place.tensor.grad
            else:
                found[name] = place.tensor.detach().double() - before[n].double()
        return found

    def _tolerance(self, parameters: Sequence[Tensor], losses: Sequence[Tensor]) -> float:
        used = {t.dtype for t in (*parameters, *losses)}
        used |= {dtype for _, dtype in casts()}
        return max(check.TOLERANCES.get(dtype, 0.0) for dtype in used)

    def _described(self) -> str:
        return f"mode {self.step.mode!r}, {len(self._traced.graph.graph.nodes)} operations"


def _own_functions(graph: fx.GraphModule) -> bool:
    """Returns True if functions of this library are called besides the aggregator."""
    called = {str(node.target) for node in graph.graph.nodes if str(node.target).startswith("gramjd.")}
    return bool(called - {str(torch.ops.gramjd.weights.default)})


def _flat(losses: Any) -> list[Tensor]:
    return [leaf for leaf in _torch.tree_leaves(losses) if isinstance(leaf, Tensor)]


def _put_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient


def _check(held: Held, batch: Batch) -> None:
    """Raise TraceError for what a graph would leave out."""
    for name, place in zip(held.names(), held.parameters, strict=False):
        tensor = place.tensor
        if type(tensor) not in (Tensor, nn.Parameter):
            raise TraceError(f"has a parameter `{name}` of type {type(tensor).__name__}")
        if _torch.leaf_hooks(tensor) or tuple(_torch.accumulated_hooks(tensor)):
            raise TraceError(f"has a hook on the parameter `{name}`, which a graph would not call")
    inside = {id(place.tensor) for place in held.parameters}
    if any(id(p) not in inside for p in held.stepped()):
        raise TraceError("has an optimizer with a parameter that is not in the model")
    if any(t.requires_grad for t in batch.tensors):
        raise TraceError("is given a tensor that requires grad")
    if graphs.several_processes():
        raise TraceError("is one of several processes, whose gradients are reduced by hooks")


def _refuse_foreign_leaves(losses: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """Raise TraceError if the losses reach a tensor to train that is not a parameter of the model."""
    known = {id(leaf) for leaf in leaves}
    for leaf in graphs.read(losses, None).leaves.values():
        if id(leaf) not in known and not _torch.is_fake(leaf):
            raise TraceError(f"trains a tensor of shape {tuple(leaf.shape)} that is not a parameter of the model")
