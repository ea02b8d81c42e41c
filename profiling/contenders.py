"""The ways to fill `.grad` that the step benchmark compares."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

import gramjd
from gramjd.profiling.cases import Setup

Backward = Callable[[Tensor], object]


class RefusalError(Exception):
    """A contender is not installed, or does not take the model; the text says why."""


def plain(setup: Setup) -> Backward:
    """Gradient descent on the mean loss: what all else is compared with."""
    return lambda losses: losses.mean().backward()


def with_gramjd(
    aggregator: Callable[[Tensor], Tensor], update: Literal["backward", "reuse"] = "backward"
) -> Callable[[Setup], Backward]:
    """`gramjd.gram_backward` with the given aggregator and way to update."""
    return lambda setup: lambda losses: gramjd.gram_backward(losses, aggregator, update=update)


def with_torchjd(weighting: str) -> Callable[[Setup], Backward]:
    """TorchJD's `autogram` engine, as its documentation uses it.

    Args:
        weighting: class name in `torchjd.aggregation`.
    """

    def prepare(setup: Setup) -> Backward:
        engine = _engine(setup)
        try:
            weigh = getattr(import_module("torchjd.aggregation"), weighting)()
        except ImportError as error:  # UPGrad there needs two solver packages that it does not bring along
            raise _refusal(error) from error

        def backward(losses: Tensor) -> None:
            losses.backward(weigh(_torchjd_gramian(engine, losses)))

        return backward

    return prepare


CONTENDERS: dict[str, Callable[[Setup], Backward]] = {
    "plain": plain,
    "gramjd Mean": with_gramjd(gramjd.Mean()),
    "gramjd UPGrad": with_gramjd(gramjd.UPGrad()),
    "gramjd Mean reuse": with_gramjd(gramjd.Mean(), "reuse"),
    "torchjd Mean": with_torchjd("MeanWeighting"),
    "torchjd UPGrad": with_torchjd("UPGradWeighting"),
}


def gramian_difference(setup: Setup) -> float | None:
    """Relative Frobenius distance of TorchJD's Gramian from ours; None where it refuses the model.

    Ours is tested against a float64 Jacobian, so a distance far above rounding means that theirs is another matrix.
    """
    ours = gramjd.gramian(setup.forward())
    try:
        theirs = _torchjd_gramian(_engine(setup), setup.forward())
    except RefusalError:
        return None
    return float(f"{float(torch.linalg.norm(theirs - ours) / torch.linalg.norm(ours)):.2g}")


def _engine(setup: Setup) -> Any:
    try:
        autogram = import_module("torchjd.autogram")
    except ModuleNotFoundError:
        raise RefusalError("not installed; it comes with: pip install 'gramjd[bench]'") from None
    try:
        return autogram.Engine(*setup.engine_modules, batch_dim=setup.batch_dim)
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        raise _refusal(error) from error


def _torchjd_gramian(engine: Any, losses: Tensor) -> Tensor:
    try:
        return engine.compute_gramian(losses)
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        raise _refusal(error) from error


def _refusal(error: Exception) -> RefusalError:
    return RefusalError(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
