"""SVHN's cropped digits: MATLAB files with X [32, 32, 3, n] and y [n, 1], in which the digit 0 has the label 10."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gramjd.experiments.data.files import broken, find
from gramjd.extras import require


def read(folder: Path, part: str, source: str) -> tuple[Tensor, Tensor]:
    """Images `[n, 3, 32, 32]` uint8 and labels `[n]`, 0 to 9, of one part.

    Args:
        folder: with `train_32x32.mat` and `test_32x32.mat`.
        part: `train` or `test`.
        source: where the files come from.

    Raises:
        MissingFilesError, InputError: the files are not there, or not as they should be.
        MissingExtraError: scipy, which reads MATLAB files, is not installed.
    """
    path = find(folder, f"{part}_32x32.mat", source)
    try:
        arrays = require("scipy.io", "paper").loadmat(path)
        images, labels = torch.as_tensor(arrays["X"]), torch.as_tensor(arrays["y"]).flatten()
    except (KeyError, ValueError, TypeError) as error:
        raise broken(path, f"{type(error).__name__}: {error}", "a MATLAB file with X and y") from None
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.shape[3:] != labels.shape:
        raise broken(path, f"X {list(images.shape)}, y {list(labels.shape)}", "X [32, 32, 3, n], y [n, 1]")
    return images.permute(3, 2, 0, 1), labels.long() % 10
