"""The ways to take a step that profiles and benchmarks compare, each with its phases marked.

A step drops the gradients, runs the forward pass and fills `.grad` anew. The optimiser's own work, which is the same
for all, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal, cast

import torch
from torch import Tensor

import gramjd
from gramjd import aggregation
from gramjd.errors import InputError
from gramjd.profiling.marks import END, Mark
from gramjd.profiling.target import Work

Step = Callable[[Mark], None]
Update = Literal["backward", "reuse"]


class RefusalError(Exception):
    """A method is not installed, or does not take the model; the text says why."""


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


class _Marked(aggregation.Weighting):
    """An aggregator between two marks."""

    def __init__(self, weigh: Callable[[Tensor], Tensor], mark: Mark) -> None:
        self.weigh, self.mark = weigh, mark

    def __call__(self, G: Tensor) -> Tensor:
        self.mark("weights")
        w = self.weigh(G)
        self.mark("backward")
        return w


def with_gramjd(update: Update) -> Callable[[Work, str], Step]:
    """`gram_backward` with one of its ways to update."""

    def prepare(work: Work, aggregator: str) -> Step:
        weigh = aggregator_named(aggregator)

        def step(mark: Mark) -> None:
            work.clear()
            mark("forward")
            losses = work.losses()
            mark("walk")
            gramjd.gram_backward(losses, _Marked(weigh, mark), inputs=work.parameters, update=update)
            mark(END)

        return step

    return prepare


def autojac(work: Work, aggregator: str) -> Step:
    """TorchJD's Jacobian engine. Its aggregation does the combination too, which so counts as weights."""
    combine = torchjd_aggregator(aggregator)
    backward, jac_to_grad = torchjd("autojac", "backward"), torchjd("autojac", "jac_to_grad")
    parameters = list(work.parameters.values())

    def step(mark: Mark) -> None:
        work.clear()
        mark("forward")
        losses = work.vector()
        mark("walk")
        backward(losses, inputs=parameters)
        mark("weights")
        jac_to_grad(parameters, combine)
        mark(END)

    return step


def autogram(work: Work, aggregator: str) -> Step:
    """TorchJD's Gramian engine, with its weighting of that name."""
    gramian = torchjd_gramian(work)
    weigh = torchjd_aggregator(f"{aggregator}Weighting")

    def step(mark: Mark) -> None:
        work.clear()
        mark("forward")
        losses = work.vector()
        mark("walk")
        G = gramian(losses)
        mark("weights")
        w = weigh(G)
        mark("backward")
        losses.backward(w)
        mark(END)

    return step


def torchjd_gramian(work: Work) -> Callable[[Tensor], Tensor]:
    """TorchJD's Gramian engine on a model: `losses [m] -> G [m, m]`.

    Raises:
        RefusalError: it is not installed, or does not take the model; from the function, too.
    """
    engine = torchjd("autogram", "Engine")
    if work.model is None:
        raise RefusalError("needs a torch.nn.Module")
    *first, last = work.batch_dims
    for batch_dim in first:
        try:
            made = engine(work.model, batch_dim=batch_dim)
            break
        except ValueError:
            continue
    else:
        with refusals():
            made = engine(work.model, batch_dim=last)

    def gramian(losses: Tensor) -> Tensor:
        with refusals():
            return cast(Tensor, made.compute_gramian(losses))

    return gramian


def torchjd_aggregator(name: str, *options: object) -> Any:
    """An aggregator or weighting of TorchJD's by its class name.

    Raises:
        RefusalError: as `torchjd` does.
    """
    kind = torchjd("aggregation", name)
    with refusals():  # UPGrad there needs two solver packages that it does not bring along
        return kind(*options)


def torchjd(part: str, name: str) -> Any:
    """A class or function of `torchjd.PART`.

    Raises:
        RefusalError: TorchJD is not installed, has none of that name, or lacks a package for it.
    """
    try:
        module = import_module(f"torchjd.{part}")
    except ModuleNotFoundError:
        raise RefusalError("not installed; it comes with: pip install 'gramjd[bench]'") from None
    with refusals():
        found = getattr(module, name, None)
    if found is None:
        raise RefusalError(f"has no {name}")
    return found


@contextmanager
def refusals() -> Iterator[None]:
    """What TorchJD raises for models that it does not take, as a RefusalError."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, TypeError, NotImplementedError, ImportError) as error:
        raise RefusalError(said(error)) from error


def said(error: BaseException) -> str:
    """The kind and the first line of an error, for a cell of a table."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0][:200] if isinstance(error, RefusalError) else f"{type(error).__name__}: {lines[0][:200]}"


METHODS: dict[str, Callable[[Work, str], Step]] = {
    "plain": plain,
    "gramjd": with_gramjd("backward"),
    "gramjd reuse": with_gramjd("reuse"),
    "jacobian": jacobian,
    "torchjd autogram": autogram,
    "torchjd autojac": autojac,
}
