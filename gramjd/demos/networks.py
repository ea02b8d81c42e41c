"""The two small networks of the digits demo."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def small_cnn() -> nn.Module:
    """3x3 convolutions without padding and ELU, like the paper's networks, cut down to 8x8 images."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ELU()),
        *(nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), nn.ELU()),
        *(nn.Flatten(), nn.Linear(128, 64), nn.ELU()),
        nn.Linear(64, 10),
    )


def small_mlp() -> nn.Module:
    """Two hidden layers of 128."""
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(64, 128), nn.ELU()),
        *(nn.Linear(128, 128), nn.ELU()),
        nn.Linear(128, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"cnn": small_cnn, "mlp": small_mlp}


def build(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """`make()` with initial weights that depend on `make` and `seed` alone.

    Args:
        make: a network's constructor, such as a value of `NETWORKS`.
        seed: of the initial weights; the caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
