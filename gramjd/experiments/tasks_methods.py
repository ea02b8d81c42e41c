"""What turns the losses of two tasks into gradients: plain sum, scalarisations and aggregators, one line each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import gramjd
from gramjd.aggregation import Coordinatewise, Weighting
from gramjd.errors import InputError
from gramjd.experiments.aggregators import ENTRIES, TABLE
from gramjd.scalarization import (
    DWA,
    FAMO,
    GeometricMean,
    GradNorm,
    RandomLossWeights,
    SmoothTchebycheff,
    Uncertainty,
)

SUM = "Sum"  # what the others are compared with
SHARPNESS = 0.1  # the mu of smooth Tchebycheff: cross-entropies end near it, where 1 would make it nearly the mean


class TwoTasks(nn.Module):
    """A small trunk in the manner of LeNet for images [n, 1, 18, 18], and a linear head per task: 28,292 parameters."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        # Strides instead of pooling: as accurate here, in half the time.
        self.trunk = nn.Sequential(
            *(nn.Conv2d(1, 16, 4, stride=2), nn.ReLU()),
            *(nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(288, 64), nn.ReLU()),
        )
        self.heads = nn.ModuleList([nn.Linear(64, 10), nn.Linear(64, 10)])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Scores [n, 10] for the digit at the upper left, and for that at the lower right."""
        features = self.trunk(images)
        return [head(features) for head in self.heads]

    @property
    def last_shared(self) -> nn.Module:
        """The last layer of the trunk with parameters."""
        return self.trunk[-2]


class Way(ABC):
    """How the losses [2] of a step become gradients; `parameters` of its own learn with the model's."""

    parameters: Sequence[nn.Parameter] = ()

    @abstractmethod
    def backward(self, losses: Tensor) -> bool | None:
        """Fill `.grad`; says of a method that has the Gramian whether gradients conflict in the trunk."""

    def after(self, losses: Callable[[], Tensor]) -> None:  # noqa: B027  # most have nothing to do
        """What follows the optimizer's step; `losses()` makes those of the same batch once more."""

    def end_epoch(self) -> None:  # noqa: B027
        """What follows an epoch."""


class Scalar(Way):
    """One loss made of two, and one ordinary backward pass."""

    def __init__(self, scalar: Callable[[Tensor], Tensor]) -> None:
        """Take a scalarisation."""
        self._scalar = scalar
        if isinstance(scalar, nn.Module):
            self.parameters = list(scalar.parameters())

    def backward(self, losses: Tensor) -> None:
        """One pass."""
        self._scalar(losses).backward()

    def after(self, losses: Callable[[], Tensor]) -> None:
        """FAMO looks at what the step did, at the price of a forward pass."""
        if isinstance(self._scalar, FAMO):
            with torch.no_grad():
                self._scalar.update(losses())

    def end_epoch(self) -> None:
        """DWA counts epochs."""
        if isinstance(self._scalar, DWA):
            self._scalar.end_epoch()


class Aggregated(Way):
    """Gradients combined in the trunk, plain ones in the heads."""

    def __init__(self, aggregator: Weighting | Coordinatewise, model: TwoTasks) -> None:
        """Take an aggregator."""
        self._aggregator = aggregator
        self._shared = list(model.trunk.parameters())

    def backward(self, losses: Tensor) -> bool | None:
        """By `mtl_backward`; over all parameters where an aggregator works coordinate by coordinate."""
        if isinstance(self._aggregator, Coordinatewise):
            # In a head one of the two gradients is zero, and the other passes as it is: the same update.
            gramjd.gram_backward(losses, self._aggregator)
            return None
        step = gramjd.mtl_backward(list(losses), self._aggregator, shared=self._shared, update="reuse")
        return bool(step.gramian[0, 1] < 0)


def _aggregated(name: str) -> Callable[[TwoTasks, int], Way]:
    return lambda model, seed: Aggregated(ENTRIES[name].make(seed), model)


METHODS: dict[str, Callable[[TwoTasks, int], Way]] = {
    SUM: lambda model, seed: Scalar(torch.sum),
    "Uncertainty": lambda model, seed: Scalar(Uncertainty(2, ["classification"] * 2)),
    "DWA": lambda model, seed: Scalar(DWA()),
    "GradNorm": lambda model, seed: Scalar(GradNorm(model.last_shared)),
    "GeometricMean": lambda model, seed: Scalar(GeometricMean()),
    "SmoothTchebycheff": lambda model, seed: Scalar(SmoothTchebycheff(mu=SHARPNESS)),
    "RandomLossWeights": lambda model, seed: Scalar(RandomLossWeights(seed)),
    "FAMO": lambda model, seed: Scalar(FAMO()),
    **{name: _aggregated(name) for name in (*TABLE, "FairGrad", "ConFIG", "GradVac")},
}


def select(names: str) -> list[str]:
    """Names from a comma-separated list, or `all`; case does not matter.

    Raises:
        InputError: a name is not one of `METHODS`.

    >>> select("upgrad,sum")
    ['UPGrad', 'Sum']
    """
    by_lower = {name.lower(): name for name in METHODS}
    chosen = list(METHODS) if names == "all" else names.split(",")
    unknown = [part for part in chosen if part.lower() not in by_lower]
    if unknown:
        raise InputError(f"got {', '.join(unknown)}; expected 'all' or names among: {', '.join(METHODS)}")
    return list(dict.fromkeys(by_lower[part.lower()] for part in chosen))
