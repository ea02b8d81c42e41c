"""Image sets as the instance-wise experiments use them: a random training subset, scaled, and images held out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gramjd.errors import InputError

TRAIN_SIZE = 1024  # random training images, as in section 5 of the paper


@dataclass(frozen=True)
class Images:
    """Images `[n, c, h, w]`, scaled per channel by the training images' mean and deviation; labels `[n]`, int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def scaled(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Images:
    """Both parts as float32, each channel with the mean and deviation that it has over the training images taken out.

    Args:
        train: images `[n, c, h, w]` of any real dtype, labels `[n]`.
        test: the same for the images held out.

    >>> labels = torch.tensor([0, 1])
    >>> data = scaled((torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), labels), (torch.ones(2, 1, 1, 1), labels))
    >>> [round(x, 4) for x in data.test_images.flatten().tolist()]
    [-0.7071, -0.7071]
    """
    (train_images, train_labels), (test_images, test_labels) = train, test
    train_images, test_images = train_images.float(), test_images.float()
    over = (0, 2, 3)
    mean = train_images.mean(over, keepdim=True)
    # A channel that never changes says nothing: leave it at zero instead of dividing by zero.
    deviation = train_images.std(over, keepdim=True)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    return Images(
        (train_images - mean) / deviation, train_labels.long(), (test_images - mean) / deviation, test_labels.long()
    )


def choose(total: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` random indices below `total`, and the others, both in random order.

    Raises:
        InputError: fewer than `count` are there.
    """
    if total < count:
        raise InputError(f"got {total} images, expected at least the {count} of a training subset")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[:count], order[count:]
