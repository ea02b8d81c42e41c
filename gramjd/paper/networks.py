"""The networks of the paper's image experiments: 3x3 convolutions without padding, ELU."""

from __future__ import annotations

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
        *(nn.Flatten(), nn.Linear(512, 64), nn.ELU()),
        nn.Linear(64, 10),
    )


def mnist_net() -> nn.Sequential:
    """For 1x28x28 images, the three MNIST-like sets: 130,890 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ELU()),
        *(nn.Conv2d(32, 64, 3), nn.MaxPool2d(2), nn.ELU()),
        *(nn.Conv2d(64, 64, 3), nn.MaxPool2d(3), nn.ELU()),
        *(nn.Flatten(), nn.Linear(576, 128), nn.ELU()),
        nn.Linear(128, 10),
    )


def eurosat_net() -> nn.Sequential:
    """For 3x64x64 images: the CIFAR-10 network with one more pooling, so that 1024 features are left here too.

    The paper's facts at hand do not give its EuroSAT network; this one is ours.
    """
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.MaxPool2d(2), nn.ELU()),
        *(nn.Conv2d(32, 64, 3, groups=32), nn.MaxPool2d(2), nn.ELU()),
        *(nn.Conv2d(64, 64, 3, groups=64), nn.MaxPool2d(3), nn.ELU()),
        *(nn.Flatten(), nn.Linear(1024, 128), nn.ELU()),
        nn.Linear(128, 10),
    )


def digits_net() -> nn.Sequential:
    """For 1x8x8 images, ours: the same style with one convolution less, 9,386 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ELU()),
        *(nn.Conv2d(16, 32, 3, groups=16), nn.MaxPool2d(2), nn.ELU()),
        *(nn.Flatten(), nn.Linear(128, 64), nn.ELU()),
        nn.Linear(64, 10),
    )
