"""One run on two overlaid digits, and what a step of each method costs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gramjd.errors import GramjdError
from gramjd.experiments.data.images import Images
from gramjd.experiments.networks import build
from gramjd.experiments.tasks_methods import METHODS, SUM, TwoTasks, Way
from gramjd.profiling.timing import interleave, ratio, spread

GIVE_UP = 1e3  # cross-entropy starts at log(10): a loss this high does not come back
CHUNK = 250  # images in one forward pass of an evaluation
FORMS: Mapping[str, tuple[float, float]] = {"equal": (1.0, 1.0), "unequal": (1.0, 10.0)}  # factors of the two losses


@dataclasses.dataclass(frozen=True)
class Study:
    """What one search for a learning rate is made for.

    Args:
        form: a key of `FORMS`.
        method: a key of `METHODS`.
        images: training images, each with two digits.
        batch: images per step.
        epochs: passes over the training images.
    """

    form: str
    method: str
    images: int
    batch: int
    epochs: int


def make(study: Study, rate: float, seed: int, data: Images) -> dict[str, Any]:
    """One run as a line of the journal; the seed is that of digits, weights, batches and method.

    `loss[e]` holds both cross-entropies as the steps of epoch e met them, averaged and without the form's factors;
    `area` is their mean over all epochs and both tasks. `accuracy[e]` holds the shares of held-out images that are
    right after e epochs; `conflicts` the share of steps with gradients that conflict in the trunk.

    A run that ends above `GIVE_UP`, or that the library refuses to go on with, counts as diverged.
    """
    start = time.process_time()
    run: dict[str, Any] = {"loss": [], "accuracy": [], "conflicts": None, "diverged": False}
    try:
        run["diverged"] = not _train(study, rate, seed, data, run)
    except GramjdError as error:
        run |= {"diverged": True, "refused": f"{type(error).__name__}: {error}"[:200]}
    area = math.inf if run["diverged"] else sum(map(sum, run["loss"])) / 2 / len(run["loss"])
    seconds = round(time.process_time() - start, 2)
    return {**dataclasses.asdict(study), "rate": rate, "seed": seed, "area": area, **run, "seconds": seconds}


def _train(study: Study, rate: float, seed: int, data: Images, run: dict[str, Any]) -> bool:
    """Train; False as soon as the run has diverged."""
    step = Step(study, rate, seed)
    shuffle = torch.Generator().manual_seed(seed)
    run["accuracy"].append(accuracies(step.model, data))
    conflicts: list[bool] = []
    for _ in range(study.epochs):
        met = []
        for batch in torch.randperm(len(data.train_images), generator=shuffle).split(study.batch):
            losses, conflict = step(data.train_images[batch], data.train_labels[batch])
            if not (losses < GIVE_UP).all():
                return False
            met.append(losses)
            conflicts += [] if conflict is None else [conflict]
        step.way.end_epoch()
        run["loss"].append(torch.stack(met).mean(0).tolist())
        run["accuracy"].append(accuracies(step.model, data))
    run["conflicts"] = sum(conflicts) / len(conflicts) if conflicts else None
    return True


class Step:
    """A model of its own, and steps of one method on it.

    Args:
        study: form and method.
        rate: of Adam.
        seed: of the weights and the method.
    """

    def __init__(self, study: Study, rate: float, seed: int) -> None:
        """Make model, method and optimizer."""
        model = build(TwoTasks, seed)
        assert isinstance(model, TwoTasks)
        self.model: TwoTasks = model
        self.way: Way = METHODS[study.method](model, seed)
        # Adam: the length of an update differs between the methods by factors, and does not count with it.
        self._optimizer = torch.optim.Adam([*model.parameters(), *self.way.parameters], lr=rate, fused=True)
        self._factors = torch.tensor(FORMS[study.form])

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, bool | None]:
        """Take one; returns the losses [2] before it, without factors, and whether gradients conflicted, if known."""
        plain = self._losses(images, labels)
        conflict = None
        if (plain.detach() < GIVE_UP).all():
            self._optimizer.zero_grad()
            conflict = self.way.backward(self._factors * plain)
            self._optimizer.step()
            self.way.after(lambda: self._factors * self._losses(images, labels))
        return plain.detach(), conflict

    def _losses(self, images: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([cross_entropy(s, t) for s, t in zip(self.model(images), labels.T, strict=True)])


@torch.no_grad()
def accuracies(model: TwoTasks, data: Images) -> list[float]:
    """The share of held-out images whose digit is found, per task."""
    right = torch.zeros(2)
    for images, labels in zip(data.test_images.split(CHUNK), data.test_labels.split(CHUNK), strict=True):
        right += torch.stack([(s.argmax(1) == t).sum() for s, t in zip(model(images), labels.T, strict=True)])
    return (right / len(data.test_labels)).tolist()


def step_costs(
    methods: Sequence[str], data: Images, batch: int, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, Any]:
    """CPU time of a step of each method over that of the plain sum, steps of all methods in turns in one process.

    Args:
        methods: keys of `METHODS`.
        data: whose first batch all steps are taken on.
        batch: images per step.
        rounds: timed rounds.
        clock: in seconds.

    Returns:
        `{"batch", "rounds", "milliseconds": median of the plain sum, "over_plain": {method: median of the ratios}}`.
    """
    images, labels = data.train_images[:batch], data.train_labels[:batch]
    # A tiny rate: many steps on one batch should not leave the state that a network is in when training starts.
    steps = {name: Step(Study("equal", name, batch, batch, 1), 1e-6, 0) for name in dict.fromkeys([SUM, *methods])}
    calls = {name: lambda step=step: step(images, labels) for name, step in steps.items()}
    times = interleave(calls, rounds=rounds, clock=clock)
    return {
        "batch": batch,
        "rounds": rounds,
        "milliseconds": 1e3 * spread(times[SUM]).median,
        "over_plain": {name: ratio(of, times[SUM]).median for name, of in times.items()},
    }
