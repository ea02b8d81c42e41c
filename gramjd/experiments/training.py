"""One training run on images: a network, a way to fill `.grad`, a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.aggregation import Coordinatewise
from gramjd.errors import LossError
from gramjd.experiments.aggregators import ENTRIES
from gramjd.experiments.data.images import Images
from gramjd.experiments.signals import conflict_share, cosine_of, cosine_to_mean

BATCH = 32
GIVE_UP = 1e3  # cross-entropy starts at log(10): a loss this high does not come back
CHUNK = 64  # images in one forward pass of an evaluation: their activations fit into a core's cache


@dataclass(frozen=True)
class Method:
    """A way to turn a batch's losses `[m]` into `.grad`.

    Args:
        name: for tables.
        aggregator: None for plain SGD on the mean loss.
        update: as in `gramjd.gram_backward`.
    """

    name: str
    aggregator: Callable[[Tensor], Tensor] | Coordinatewise | None = None
    update: Literal["backward", "reuse"] = "backward"

    def backward(self, losses: Tensor) -> gramjd.GramStep | None:
        """Fill `.grad`; return the Gramian and weights where there are any."""
        if self.aggregator is None:
            losses.mean().backward()
            return None
        return gramjd.gram_backward(losses, self.aggregator, update=self.update)


def studied(name: str, seed: int) -> Method:
    """An aggregator of the table as the studies use it: the update by kept factors, the same in less time."""
    aggregator = ENTRIES[name].make(seed)
    return Method(name, aggregator, "backward" if isinstance(aggregator, Coordinatewise) else "reuse")


@dataclass
class Run:
    """What one training run left behind.

    `loss[e]` is the mean loss over all training images after `e` epochs; `cosine[e]` and `conflicts[e]` are the
    averages over the steps of epoch `e`. With a loss above `GIVE_UP`, or not finite, a run has `diverged` and ends.
    """

    network: str
    method: str
    rate: float
    loss: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    conflicts: list[float] = field(default_factory=list)
    accuracy: float = math.nan
    diverged: bool = False

    @property
    def area(self) -> float:
        """Area under the loss curve per epoch (trapezoids), by which learning rates are compared."""
        if self.diverged or len(self.loss) < 2:
            return math.inf
        return (sum(self.loss) - (self.loss[0] + self.loss[-1]) / 2) / (len(self.loss) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the area."""
        return {**vars(self), "area": self.area}


# From images and labels to the update's cosine to the mean gradient and the share of conflicting pairs; None: diverged.
Step = Callable[[Tensor, Tensor], tuple[float, float] | None]


def train(
    network: str,
    model: nn.Module,
    method: Method,
    rate: float,
    data: Images,
    *,
    epochs: int,
    seed: int,
    tick: Callable[[int], object] = lambda steps: None,
    batch: int = BATCH,
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    compiled: str | None = None,
) -> Run:
    """Train `model` in place, on the order of batches that `seed` stands for.

    Args:
        network: the name that the run gets.
        model: with its initial weights.
        method: how a batch's losses become a gradient.
        rate: learning rate, constant.
        data: images and labels.
        epochs: passes over the training images.
        seed: of the batches, so that runs that share it differ in method and rate alone.
        tick: called with the number of steps done (or skipped), for a progress bar.
        batch: images per step.
        optimizer: what does the step; without options beside the rate.
        compiled: a mode of `gramjd.compile` for steps with an aggregator; None for eager ones.
    """
    made = optimizer(model.parameters(), lr=rate)  # type: ignore[call-arg]  # every optimiser of torch takes lr
    if compiled is not None and method.aggregator is not None:
        step = _compiled(model, made, method, compiled)
    else:
        step = _eager(model, made, method)
    shuffle = torch.Generator().manual_seed(seed)
    run = Run(network, method.name, rate, loss=[evaluate(model, data.train_images, data.train_labels)[0]])
    for epoch in range(epochs):
        batches = torch.randperm(len(data.train_images), generator=shuffle).split(batch)
        if not _train_epoch(model, step, data, batches, run, tick):
            run.diverged = True
            tick(len(batches) * (epochs - epoch - 1))
            break
    run.accuracy = evaluate(model, data.test_images, data.test_labels)[1]
    return run


def _train_epoch(
    model: nn.Module,
    step: Step,
    data: Images,
    batches: tuple[Tensor, ...],
    run: Run,
    tick: Callable[[int], object],
) -> bool:
    """One epoch, its averages appended to `run`; False as soon as the run has diverged."""
    signals = []
    for done, batch in enumerate(batches):
        found = step(data.train_images[batch], data.train_labels[batch])
        if found is None:
            tick(len(batches) - done)
            return False
        signals.append(found)
        tick(1)
    for record, values in zip((run.cosine, run.conflicts), torch.tensor(signals).T, strict=True):
        record.append(float(values.nanmean()))
    run.loss.append(evaluate(model, data.train_images, data.train_labels)[0])
    return run.loss[-1] < GIVE_UP


def _eager(model: nn.Module, optimizer: torch.optim.Optimizer, method: Method) -> Step:
    def step(images: Tensor, labels: Tensor) -> tuple[float, float] | None:
        losses = cross_entropy(model(images), labels, reduction="none")
        if not (losses.detach() < GIVE_UP).all():
            return None
        optimizer.zero_grad()
        signals = _step(losses, method, list(model.parameters()))
        optimizer.step()
        return signals

    return step


def _compiled(model: nn.Module, optimizer: torch.optim.Optimizer, method: Method, mode: str) -> Step:
    def losses(images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(model(images), labels, reduction="none")

    make = gramjd.compile(losses, model, optimizer, method.aggregator, mode=mode)

    def step(images: Tensor, labels: Tensor) -> tuple[float, float] | None:
        try:
            done = make(images, labels)
        except LossError:  # not finite
            return None
        if not (done.losses < GIVE_UP).all():
            return None
        if done.gramian is None or done.weights is None:
            return math.nan, math.nan
        return cosine_to_mean(done.gramian, done.weights), conflict_share(done.gramian)

    return step


def _step(losses: Tensor, method: Method, parameters: Sequence[Tensor]) -> tuple[float, float]:
    """Fill `.grad`; return the update's cosine to the mean gradient and the share of conflicting pairs."""
    if isinstance(method.aggregator, Coordinatewise):
        conflicts = conflict_share(gramjd.gramian(losses))
        mean = torch.autograd.grad(losses.mean(), parameters, retain_graph=True)
        method.backward(losses)
        return cosine_of(mean, [p.grad for p in parameters if p.grad is not None]), conflicts
    # SGD has no use for a Gramian: this one is for the table only, and no part of what is timed.
    conflicts = conflict_share(gramjd.gramian(losses)) if method.aggregator is None else math.nan
    step = method.backward(losses)
    if step is None:
        return 1.0, conflicts
    return cosine_to_mean(step.gramian, step.weights), conflict_share(step.gramian)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy, and the share of images whose label is predicted."""
    loss, right = 0.0, 0
    for part, truth in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
        outputs = model(part)
        loss += float(cross_entropy(outputs, truth, reduction="sum"))
        right += int((outputs.argmax(1) == truth).sum())
    return loss / len(labels), right / len(labels)
