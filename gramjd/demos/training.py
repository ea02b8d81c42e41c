"""One training run of the digits demo: a network, a way to fill `.grad`, a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.demos.digits import Digits
from gramjd.demos.networks import build
from gramjd.demos.signals import conflict_share, cosine_to_mean

BATCH = 32
GIVE_UP = 1e3  # cross-entropy starts at log(10): a loss this high does not come back


@dataclass(frozen=True)
class Method:
    """A way to turn a batch's losses `[m]` into `.grad`. Without an aggregator: plain SGD on the mean loss."""

    name: str
    aggregator: Callable[[Tensor], Tensor] | None = None

    def backward(self, losses: Tensor) -> gramjd.GramStep | None:
        """Fill `.grad`; return the Gramian and weights where there are any."""
        if self.aggregator is None:
            losses.mean().backward()
            return None
        return gramjd.gram_backward(losses, self.aggregator)


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


def train(
    network: str,
    method: Method,
    rate: float,
    data: Digits,
    *,
    epochs: int,
    seed: int,
    tick: Callable[[int], object],
) -> Run:
    """Train from the initial weights and the order of batches that `seed` stands for.

    Args:
        network: a key of `NETWORKS`.
        method: how a batch's losses become a gradient.
        rate: learning rate of plain SGD, constant.
        data: images and labels.
        epochs: passes over the training images, in batches of 32.
        seed: of weights and batches, so that runs that share it differ in method and rate alone.
        tick: called with the number of steps done (or skipped), for a progress bar.
    """
    model = build(network, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    shuffle = torch.Generator().manual_seed(seed)
    run = Run(network, method.name, rate, loss=[mean_loss(model, data)])
    for epoch in range(epochs):
        batches = torch.randperm(len(data.train_images), generator=shuffle).split(BATCH)
        if not _train_epoch(model, optimizer, method, data, batches, run, tick):
            run.diverged = True
            tick(len(batches) * (epochs - epoch - 1))
            break
    run.accuracy = accuracy(model, data)
    return run


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    data: Digits,
    batches: tuple[Tensor, ...],
    run: Run,
    tick: Callable[[int], object],
) -> bool:
    """One epoch, its averages appended to `run`; False as soon as the run has diverged."""
    signals = []
    for done, batch in enumerate(batches):
        losses = cross_entropy(model(data.train_images[batch]), data.train_labels[batch], reduction="none")
        if not (losses.detach() < GIVE_UP).all():
            tick(len(batches) - done)
            return False
        optimizer.zero_grad()
        signals.append(_step(losses, method))
        optimizer.step()
        tick(1)
    for record, values in zip((run.cosine, run.conflicts), torch.tensor(signals).T, strict=True):
        record.append(float(values.nanmean()))
    run.loss.append(mean_loss(model, data))
    return run.loss[-1] < GIVE_UP


def _step(losses: Tensor, method: Method) -> tuple[float, float]:
    """Fill `.grad`; return the update's cosine to the mean gradient and the share of conflicting pairs."""
    if method.aggregator is None:
        # SGD has no use for a Gramian: this one is for the table only, and no part of what is timed.
        gramian = gramjd.gramian(losses)
        method.backward(losses)
        return 1.0, conflict_share(gramian)
    step = method.backward(losses)
    assert step is not None
    return cosine_to_mean(step.gramian, step.weights), conflict_share(step.gramian)


@torch.no_grad()
def mean_loss(model: nn.Module, data: Digits) -> float:
    """Mean cross-entropy over all training images."""
    return float(cross_entropy(model(data.train_images), data.train_labels))


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Share of held-out images whose label is predicted."""
    return float((model(data.test_images).argmax(1) == data.test_labels).float().mean())
