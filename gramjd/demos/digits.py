"""scikit-learn's handwritten digits, split as the instance-wise experiments split their data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gramjd.demos.extras import require

TRAIN_SIZE = 1024  # random training images, as in section 5 of the paper


@dataclass(frozen=True)
class Digits:
    """Images `[n, 1, 8, 8]` scaled by the training images' mean and deviation, labels `[n]` in 0..9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(seed: int) -> Digits:
    """1024 random training images out of 1797; the other 773 are held out.

    Args:
        seed: chooses the subset.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    raw = require("sklearn.datasets", "demo").load_digits()
    images = torch.as_tensor(raw.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.as_tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAIN_SIZE], order[TRAIN_SIZE:]
    images = (images - images[train].mean()) / images[train].std()
    return Digits(images[train], labels[train], images[test], labels[test])
