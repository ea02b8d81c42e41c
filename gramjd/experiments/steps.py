"""Time and memory of one training step: the ways to fill `.grad`, each on its own copy of a network, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.experiments.aggregators import ENTRIES
from gramjd.experiments.networks import build
from gramjd.experiments.training import Method, studied
from gramjd.profiling.memory import peak_bytes
from gramjd.profiling.timing import Spread, interleave, ratio, spread

WARM = 3  # steps after which all that is compiled is


@dataclass(frozen=True)
class Task:
    """A network and the batch that its steps are taken on.

    Args:
        network: makes the network.
        images: [m, c, h, w].
        labels: [m].
        seed: of the initial weights.
    """

    network: Callable[[], nn.Module]
    images: Tensor
    labels: Tensor
    seed: int = 0


@dataclass(frozen=True)
class StepCost:
    """Cost of a step. `over_first` is its time over that of the first contender, round by round."""

    time: Spread
    over_first: Spread
    rounds: int
    peak_bytes: int

    def to_dict(self, time: str, over: str) -> dict[str, Any]:
        """Plain values, the two spreads under the given names."""
        return {
            time: vars(self.time),
            over: vars(self.over_first),
            "rounds": self.rounds,
            "peak_bytes": self.peak_bytes,
        }


Fill = Callable[[nn.Module, Task], object]


@dataclass(frozen=True)
class Compiled:
    """A contender whose whole step is compiled: `torch.compile` for SGD, `gramjd.compile` for an aggregator.

    Args:
        name: an aggregator of the table; None for SGD.
    """

    name: str | None = None

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, task: Task) -> Callable[[], object]:
        """A step that is compiled by now."""
        if self.name is None:
            loss = torch.compile(lambda: _losses(model, task).mean())

            def take() -> None:
                loss().backward()
                optimizer.step()
                optimizer.zero_grad()

        else:
            aggregator = ENTRIES[self.name].make(0)
            made = gramjd.compile(lambda: _losses(model, task), model, optimizer, aggregator, update="reuse")

            def take() -> None:
                made()

        for _ in range(WARM):
            take()
        return take


def by_method(method: Method) -> Fill:
    """What a training run does: plain SGD, or `gramjd.gram_backward`."""
    return lambda model, task: method.backward(_losses(model, task))


def by_gramian(name: str) -> Fill:
    """`gramjd.gram_backward` with an aggregator of the table."""
    return by_method(Method(name, ENTRIES[name].make(0)))


def by_jacobian(name: str) -> Fill:
    """J [m, n] with a backward pass a row, all rows batched by vmap, as the paper's own experiments did."""
    combine = ENTRIES[name].make(0).aggregate

    def fill(model: nn.Module, task: Task) -> None:
        parameters, losses = list(model.parameters()), _losses(model, task)
        eye = torch.eye(len(losses), device=losses.device)
        rows = torch.autograd.grad(losses, parameters, eye, is_grads_batched=True)
        _assign(parameters, combine(torch.cat([row.flatten(1) for row in rows], 1)))

    return fill


def by_sample(name: str) -> Fill:
    """J [m, n] as the gradients of m one-sample networks (`torch.func`): right only where samples do not mix."""
    combine = ENTRIES[name].make(0).aggregate

    def fill(model: nn.Module, task: Task) -> None:
        parameters = {key: p.detach() for key, p in model.named_parameters()}

        def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            return cross_entropy(torch.func.functional_call(model, values, (image[None],)), label[None])

        rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, task.images, task.labels)
        _assign(list(model.parameters()), combine(torch.cat([row.flatten(1) for row in rows.values()], 1)))

    return fill


SGD = by_method(Method("SGD"))
WAYS: dict[str, Callable[[str], Fill]] = {"jacobian": by_jacobian, "per sample": by_sample, "gramjd": by_gramian}


def make_step(fill: Fill | Compiled, task: Task) -> Callable[[], object]:
    """A step on a network of its own: forward, `.grad`, SGD; the gradients are dropped at its end.

    Args:
        fill: how `.grad` is filled, or a step that is compiled whole.
        task: network and batch.
    """
    model = build(task.network, task.seed).to(task.images.device)
    # A tiny rate: many steps on one batch should not leave the state that a network is in when training starts.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    if isinstance(fill, Compiled):
        return fill.step(model, optimizer, task)

    def take() -> None:
        fill(model, task)
        optimizer.step()
        optimizer.zero_grad()

    return take


def compare(task: Task, contenders: Mapping[str, Fill | Compiled], *, rounds: int, scale: float) -> dict[str, StepCost]:
    """Cost of a step of every contender, from the same weights and on the same batch.

    Times come from steps taken in turns; memory from one further step, as counting allocations takes time.

    Args:
        task: network and batch; they stay on the device of the images.
        contenders: how each fills `.grad`; compared with the first of them.
        rounds: timed rounds.
        scale: what seconds are multiplied by.
    """
    device = task.images.device
    steps = {name: make_step(fill, task) for name, fill in contenders.items()}
    times = interleave(steps, rounds=rounds, warmup=1, at_least=0.02, device=device)
    first = times[next(iter(times))]
    return {
        name: StepCost(spread([scale * t for t in of]), ratio(of, first), len(of), peak_bytes(steps[name], device))
        for name, of in times.items()
    }


def over_plain(task: Task, names: Sequence[str], *, rounds: int) -> dict[str, float]:
    """CPU time of a step with each aggregator over that of plain SGD, medians of the ratios, steps taken in turns.

    CPU time, as other programs on the machine disturb it less.

    Args:
        task: network and batch.
        names: of aggregators.
        rounds: timed rounds.
    """
    steps = {name: make_step(by_method(studied(name, 0)), task) for name in names}
    times = interleave({"": make_step(SGD, task), **steps}, rounds=rounds, warmup=2, clock=time.process_time)
    return {name: ratio(times[name], times[""]).median for name in names}


def _losses(model: nn.Module, task: Task) -> Tensor:
    return cross_entropy(model(task.images), task.labels, reduction="none")


def _assign(parameters: list[nn.Parameter], update: Tensor) -> None:
    parts = update.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
