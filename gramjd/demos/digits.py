"""scikit-learn's handwritten digits, split as the instance-wise experiments split their data."""

from __future__ import annotations

import torch

from gramjd.demos.extras import require
from gramjd.demos.images import TRAIN_SIZE, Images, choose, scaled


def load_digits(seed: int) -> Images:
    """1024 random training images `[1, 8, 8]` out of 1797; the other 773 are held out.

    Args:
        seed: chooses the subset.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    raw = require("sklearn.datasets", "demo").load_digits()
    images = torch.as_tensor(raw.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.as_tensor(raw.target)
    train, test = choose(len(images), TRAIN_SIZE, seed)
    return scaled((images[train], labels[train]), (images[test], labels[test]))
