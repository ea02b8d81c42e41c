"""The ways to take a step that a profile compares, each with its phases marked.

A step drops the gradients, runs the forward pass and fills `.grad` anew. The optimiser's own work, which is the same
for all, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, cast

import torch
from torch import Tensor

import gramjd
from gramjd import aggregation
from gramjd.errors import InputError
from gramjd.profiling.contenders import RefusalError
from gramjd.profiling.marks import END, Mark
from gramjd.profiling.target import Work

Step = Callable[[Mark], None]
Update = Literal["backward", "reuse"]


def aggregator_named(name: str) -> Callable[[Tensor], Tensor]:
    """An aggregator of gramjd by its class name.

    Raises:
        InputError: there is none of that name.
    """
    kind: Any = getattr(aggregation, name, None)
    if name not in aggregation.__all__ or not isinstance(kind, type):
        raise InputError(f"got aggregator {name!r}; expected one of {', '.join(aggregation.__all__)}")
    return cast(Callable[[Tensor], Tensor], kind())


def plain(work: Work, aggregator: str) -> Step:
    """Gradient descent on the mean loss: what all else is compared with."""

    def step(mark: Mark) -> None:
        work.clear()
        mark("forward")
        losses = work.vector()
        mark("backward")
        losses.mean().backward()
        mark(END)

    return step


def jacobian(work: Work, aggregator: str) -> Step:
    """The definition: J [m, n] by one backward pass a loss, then J^T w."""
    weigh = aggregator_named(aggregator)
    parameters = list(work.parameters.values())

    def step(mark: Mark) -> None:
        work.clear()
        mark("forward")
        losses = work.vector()
        mark("walk")
        J = losses.new_empty(work.m, sum(p.numel() for p in parameters))
        for row, loss in zip(J, losses.unbind(), strict=True):
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
            torch.cat([g.flatten() for g in gradients], out=row)
        mark("weights")
        w = weigh(J @ J.T)
        mark("backward")
        combined = (w.to(J.dtype) @ J).split([p.numel() for p in parameters])
        for parameter, gradient in zip(parameters, combined, strict=True):
            parameter.grad = gradient.view_as(parameter)
        mark(END)

    return step


def with_gramjd(update: Update) -> Callable[[Work, str], Step]:
    """`gram_backward` with one of its ways to update."""

    def prepare(work: Work, aggregator: str) -> Step:
        weigh = aggregator_named(aggregator)

        def step(mark: Mark) -> None:
            def marked(G: Tensor) -> Tensor:
                mark("weights")
                w = weigh(G)
                mark("backward")
                return w

            work.clear()
            mark("forward")
            losses = work.losses()
            mark("walk")
            gramjd.gram_backward(losses, marked, inputs=work.parameters, update=update)
            mark(END)

        return step

    return prepare


def autojac(work: Work, aggregator: str) -> Step:
    """TorchJD's Jacobian engine. Its aggregation does the combination too, which so counts as weights."""
    module = _torchjd("autojac")
    combine = _torchjd_part(aggregator)
    parameters = list(work.parameters.values())

    def step(mark: Mark) -> None:
        work.clear()
        mark("forward")
        losses = work.vector()
        mark("walk")
        module.backward(losses, inputs=parameters)
        mark("weights")
        module.jac_to_grad(parameters, combine)
        mark(END)

    return step


def autogram(work: Work, aggregator: str) -> Step:
    """TorchJD's Gramian engine, told that the batch is dimension 0; where it refuses that, that there is no batch."""
    module = _torchjd("autogram")
    weigh = _torchjd_part(f"{aggregator}Weighting")
    if work.model is None:
        raise RefusalError("needs a torch.nn.Module")
    try:
        engine = module.Engine(work.model, batch_dim=0)
    except ValueError:
        engine = module.Engine(work.model, batch_dim=None)

    def step(mark: Mark) -> None:
        work.clear()
        mark("forward")
        losses = work.vector()
        mark("walk")
        G = engine.compute_gramian(losses)
        mark("weights")
        w = weigh(G)
        mark("backward")
        losses.backward(w)
        mark(END)

    return step


def _torchjd(part: str) -> Any:
    try:
        return import_module(f"torchjd.{part}")
    except ModuleNotFoundError:
        raise RefusalError("not installed; it comes with: pip install 'gramjd[bench]'") from None


def _torchjd_part(name: str) -> Any:
    try:
        return getattr(_torchjd("aggregation"), name)()
    except AttributeError:
        raise RefusalError(f"has no {name}") from None
    except ImportError as error:  # UPGrad there needs two solver packages that it does not bring along
        raise RefusalError(str(error).strip().splitlines()[0]) from None


METHODS: dict[str, Callable[[Work, str], Step]] = {
    "plain": plain,
    "gramjd": with_gramjd("backward"),
    "gramjd reuse": with_gramjd("reuse"),
    "jacobian": jacobian,
    "torchjd autogram": autogram,
    "torchjd autojac": autojac,
}
