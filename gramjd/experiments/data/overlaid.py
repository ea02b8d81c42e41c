"""Two digits in one image, as in MultiMNIST: one towards the upper left, one towards the lower right."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from gramjd.experiments.data import idx
from gramjd.experiments.data.images import Images, choose, scaled
from gramjd.experiments.data.sets import HELD_OUT, SOURCES

SHIFT = 4  # pixels that each digit lies off the middle, along both axes


def overlaid(first: Tensor, second: Tensor) -> Tensor:
    """Each image of `first` at the upper left of a canvas, that of `second` at its lower right; brighter pixels stay.

    With the shift s = 4 of both digits the canvas is 2s = 8 pixels larger than an image; it is then halved, each 2x2
    square of pixels to its mean.

    Args:
        first: images [n, 1, h, w] of any real dtype, h and w even.
        second: as many of the same size.

    Returns:
        Images [n, 1, h / 2 + s, w / 2 + s], float32, in the units of what was given.

    Source: Sabour, Frosst and Hinton, Dynamic routing between capsules (2017), section 6; without halving, and with a
    digit of another class on top.

    >>> bright, dark = torch.full((1, 1, 2, 2), 8.0), torch.full((1, 1, 2, 2), 4.0)
    >>> overlaid(bright, dark)[0, 0, ::4, ::4]
    tensor([[8., 0.],
            [0., 4.]])
    """
    n, channels, height, width = first.shape
    canvas = torch.zeros(n, channels, height + 2 * SHIFT, width + 2 * SHIFT)
    canvas[:, :, :height, :width] = first
    corner = canvas[:, :, 2 * SHIFT :, 2 * SHIFT :]
    corner.copy_(torch.maximum(corner, second.float()))
    return avg_pool2d(canvas, 2)


def pairs(images: Tensor, labels: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The images at `chosen`, each with the one after it laid over; every digit is there once in both places.

    Args:
        images: [n, 1, h, w].
        labels: [n].
        chosen: indices [k], k at least 2.

    Returns:
        Images [k, 1, h', w'], and their labels [k, 2]: upper left, lower right.
    """
    other = chosen.roll(-1)
    return overlaid(images[chosen], images[other]), torch.stack([labels[chosen], labels[other]], 1)


def load(root: Path, seed: int, train: int) -> Images:
    """Pairs of MNIST's digits: `train` of its training part, at most 2,000 of its test part; labels are [n, 2].

    Args:
        root: with the folder `mnist`, the files as their authors publish them.
        seed: chooses digits and pairs.
        train: training images.

    Raises:
        MissingFilesError, InputError: the files are not there, not as they should be, or hold too few images.
    """
    images, labels = idx.read(root / "mnist", "train", SOURCES["mnist"])
    test_images, test_labels = idx.read(root / "mnist", "test", SOURCES["mnist"])
    chosen = choose(len(images), train, seed)[0]
    held_out = choose(len(test_images), min(HELD_OUT, len(test_images)), seed)[0]
    return scaled(pairs(images, labels, chosen), pairs(test_images, test_labels, held_out))
