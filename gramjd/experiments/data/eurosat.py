"""EuroSAT (RGB): a folder of 64x64 JPEG files for each of ten kinds of land."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gramjd.experiments.data.files import MissingFilesError, broken
from gramjd.extras import require

CLASSES = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
    *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
)
SUFFIXES = (".jpg", ".jpeg", ".png")


def index(folder: Path, source: str) -> list[tuple[Path, int]]:
    """Every image file and its label, in the order of the classes and file names.

    Args:
        folder: with the ten class folders.
        source: where they come from.

    Raises:
        MissingFilesError: a class folder is not there, or holds no image.
    """
    found = []
    for label, name in enumerate(CLASSES):
        files = sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise MissingFilesError(f"no images in {folder / name}; get the folders from {source} and put them there")
        found += [(path, label) for path in files]
    return found


def read(entries: Sequence[tuple[Path, int]]) -> tuple[Tensor, Tensor]:
    """Images `[n, 3, 64, 64]` uint8 and labels `[n]` of some entries of `index`.

    Raises:
        InputError: a file is no image of 64x64.
        MissingExtraError: Pillow is not installed.
    """
    images = torch.empty(len(entries), 3, 64, 64, dtype=torch.uint8)
    for k, (path, _) in enumerate(entries):
        images[k] = _image(path)
    return images, torch.tensor([label for _, label in entries])


def _image(path: Path) -> Tensor:
    pillow = require("PIL.Image", "paper")
    try:
        with pillow.open(path) as picture:
            size, data = picture.size, picture.convert("RGB").tobytes()
    except OSError as error:
        raise broken(path, str(error), "a JPEG or PNG image") from None
    if size != (64, 64):
        raise broken(path, f"{size[0]}x{size[1]} pixels", "64x64")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(64, 64, 3).permute(2, 0, 1)
