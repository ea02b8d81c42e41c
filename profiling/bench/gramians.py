"""Gramians to time weightings on: of small networks on scikit-learn's digits, and drawn ones.

    network_gramians(256)["CNN, trained"] -> [256, 256]; drawn("low rank", 256) -> [256, 256]

The first m rows and columns belong to the first m losses, so one Gramian of a network serves for every smaller m.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.extras import require
from gramjd.profiling.bench.models import GPT, mlp

_DARKEST = 16  # grey of a digit
_BATCH, _RATE = 64, 1e-3


class Network(NamedTuple):
    """A model, its losses `(model, images [b, 8, 8] of integers, labels [b]) -> [b]`, and Adam steps to train it."""

    make: Callable[[], nn.Module]
    losses: Callable[[nn.Module, Tensor, Tensor], Tensor]
    steps: int
    most: int


def _cnn() -> nn.Module:
    features = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


def _flat_losses(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(model(images.flatten(1) / _DARKEST), labels, reduction="none")


def _image_losses(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(model(images[:, None] / _DARKEST), labels, reduction="none")


def _next_pixel_losses(model: nn.Module, images: Tensor, _: Tensor) -> Tensor:
    tokens = images.flatten(1)
    return cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


NETWORKS = {
    "MLP": Network(lambda: mlp((64, 128, 128, 10)), _flat_losses, steps=300, most=1024),
    "CNN": Network(_cnn, _image_losses, steps=300, most=1024),
    "language model": Network(
        lambda: GPT(_DARKEST + 1, 63, layers=2, width=64), _next_pixel_losses, steps=150, most=512
    ),
}


def network_gramians(m: int) -> dict[str, Tensor]:
    """`G = J J^T` [m, m] in float32 of each network, `NAME, init` and `NAME, trained`: one loss per image.

    A network whose Gramian would take minutes stops at its own `most`. Weights, images and batches depend on
    nothing but m; the caller's random state is left as it was.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    raw = require("sklearn.datasets", "bench").load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    images, labels = torch.as_tensor(raw.images).long()[order], torch.as_tensor(raw.target)[order]
    found = {}
    for name, network in NETWORKS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = network.make()
        size = min(m, network.most)
        found[f"{name}, init"] = gramjd.gramian(network.losses(model, images[:size], labels[:size]))
        _train(model, network, images, labels)
        found[f"{name}, trained"] = gramjd.gramian(network.losses(model, images[:size], labels[:size]))
    return found


def _train(model: nn.Module, network: Network, images: Tensor, labels: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), _RATE)
    for _ in range(network.steps):
        batch = torch.randint(len(images), (_BATCH,), generator=generator)
        optimizer.zero_grad()
        network.losses(model, images[batch], labels[batch]).mean().backward()
        optimizer.step()


def randn(seed: int, *shape: int) -> Tensor:
    """Drawn from a normal distribution in float64, the same for each seed."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random(m: int) -> Tensor:
    """Independent gradients in many dimensions: half of the pairs conflict, all of them a little."""
    return randn(m, m, 4 * m)


def conflicting(m: int) -> Tensor:
    """Gradients that nearly cancel in the sum: hardly any direction improves all losses."""
    J = randn(m, m, 4 * m)
    return J - 0.9 * J.mean(0)


def correlated(m: int) -> Tensor:
    """Six common factors of either sign carry most of each gradient, whose lengths span orders of magnitude."""
    J = 0.3 * randn(m, m, 4 * m) + randn(m + 1, m, 6) @ randn(m + 2, 6, 4 * m) / 6**0.5
    return J * torch.exp(2 * randn(m + 3, m, 1))


def low_rank(m: int) -> Tensor:
    """Fewer dimensions than losses, and a direction that serves all of them."""
    J = randn(m, m, m // 4 + 2)
    J[:, 0] = 0.3 * J[:, 0].abs() + 0.1
    return J


FAMILIES: dict[str, Callable[[int], Tensor]] = {
    "random": random,
    "conflicting": conflicting,
    "correlated": correlated,
    "low rank": low_rank,
}


def drawn(family: str, m: int) -> Tensor:
    """The Gramian [m, m] in float64 of a family of `FAMILIES`.

    >>> drawn("random", 3).shape
    torch.Size([3, 3])
    """
    J = FAMILIES[family](m)
    return J @ J.mT
