"""The networks of the experiments on images: 3x3 convolutions without padding and ELU, as in the paper."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def cifar_net() -> nn.Sequential:
    """For 3x32x32 images, the CIFAR-10 runs: 134,666 parameters, two of the convolutions grouped."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.ELU()),
        *(nn.Conv2d(32, 64, 3, groups=32), nn.MaxPool2d(2), nn.ELU()),
        *(nn.Conv2d(64, 64, 3, groups=64), nn.MaxPool2d(3), nn.ELU()),
        *(nn.Flatten(), nn.Linear(1024, 128), nn.ELU()),
        nn.Linear(128, 10),
    )


def svhn_net() -> nn.Sequential:
    """For 3x32x32 images: 34,570 parameters, two of the convolutions grouped."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.ELU()),
        *(nn.Conv2d(16, 32, 3, groups=16), nn.MaxPool2d(2), nn.ELU()),
        *(nn.Conv2d(32, 32, 3, groups=32), nn.MaxPool2d(3), nn.ELU()),
        *_head(512, 64),
    )


def mnist_net() -> nn.Sequential:
    """For 1x28x28 images, the three MNIST-like sets: 130,890 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ELU()),
        *(nn.Conv2d(32, 64, 3), nn.MaxPool2d(2), nn.ELU()),
        *(nn.Conv2d(64, 64, 3), nn.MaxPool2d(3), nn.ELU()),
        *_head(576, 128),
    )


def eurosat_net() -> nn.Sequential:
    """For 3x64x64 images: the CIFAR-10 network with one more pooling, so that 1024 features are left here too.

    The paper's facts at hand do not give its EuroSAT network; this one is ours.
    """
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.MaxPool2d(2), nn.ELU()),
        *(nn.Conv2d(32, 64, 3, groups=32), nn.MaxPool2d(2), nn.ELU()),
        *(nn.Conv2d(64, 64, 3, groups=64), nn.MaxPool2d(3), nn.ELU()),
        *_head(1024, 128),
    )


def digits_net(groups: int = 16) -> nn.Sequential:
    """For 1x8x8 images, ours: the same style with one convolution less, 9,386 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ELU()),
        *(nn.Conv2d(16, 32, 3, groups=groups), nn.MaxPool2d(2), nn.ELU()),
        *_head(128, 64),
    )


def digits_mlp() -> nn.Sequential:
    """For 1x8x8 images: two hidden layers of 128."""
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(64, 128), nn.ELU()),
        *(nn.Linear(128, 128), nn.ELU()),
        nn.Linear(128, 10),
    )


# Those of `gramjd demo iwrm`; its convolutions are not grouped.
DEMO: dict[str, Callable[[], nn.Module]] = {"cnn": lambda: digits_net(groups=1), "mlp": digits_mlp}


def build(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """`make()` with initial weights that depend on `make` and `seed` alone.

    Args:
        make: a network's constructor, such as a value of `DEMO`.
        seed: of the initial weights; the caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _head(features: int, hidden: int) -> tuple[nn.Module, ...]:
    return nn.Flatten(), nn.Linear(features, hidden), nn.ELU(), nn.Linear(hidden, 10)
