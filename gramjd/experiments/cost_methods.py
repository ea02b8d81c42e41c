"""The ways to fill `.grad` that the paper's cost table compares, each on its own copy of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.experiments.aggregators import ENTRIES
from gramjd.experiments.networks import build


@dataclass(frozen=True)
class Task:
    """A network and the batch that its steps are taken on.

    Args:
        network: makes the network.
        images: [m, c, h, w].
        labels: [m].
    """

    network: Callable[[], nn.Module]
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Step:
    """`clear()` drops the gradients; `take()` is a step: forward, `.grad`, SGD."""

    clear: Callable[[], None]
    take: Callable[[], None]


Fill = Callable[[nn.Module, Task], None]
Combine = Callable[[Tensor], Tensor]


def sgd(model: nn.Module, task: Task) -> None:
    """Plain gradient descent on the mean loss."""
    _losses(model, task).mean().backward()


def by_gramian(name: str) -> Fill:
    """`gramjd.gram_backward` with an aggregator of Table 1."""
    aggregator = ENTRIES[name].make(0)
    return lambda model, task: gramjd.gram_backward(_losses(model, task), aggregator) and None


def by_jacobian(name: str) -> Fill:
    """J [m, n] with a backward pass a row, all rows batched by vmap, as the paper's own experiments did."""
    combine = ENTRIES[name].make(0).aggregate

    def fill(model: nn.Module, task: Task) -> None:
        parameters, losses = list(model.parameters()), _losses(model, task)
        rows = torch.autograd.grad(
            losses, parameters, torch.eye(len(losses), device=losses.device), is_grads_batched=True
        )
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


WAYS: dict[str, Callable[[str], Fill]] = {"jacobian": by_jacobian, "per sample": by_sample, "gramjd": by_gramian}


def make_step(fill: Fill, task: Task) -> Step:
    """A step on a network of its own, with the same initial weights for all.

    Args:
        fill: how `.grad` is filled.
        task: network and batch.
    """
    model = build(task.network, seed=0).to(task.images.device)
    # A tiny rate: many steps on one batch should not leave the state that a network is in when training starts.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def take() -> None:
        optimizer.zero_grad()
        fill(model, task)
        optimizer.step()

    return Step(optimizer.zero_grad, take)


def _losses(model: nn.Module, task: Task) -> Tensor:
    return cross_entropy(model(task.images), task.labels, reduction="none")


def _assign(parameters: list[nn.Parameter], update: Tensor) -> None:
    parts = update.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
