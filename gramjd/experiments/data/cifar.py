"""CIFAR-10 in its binary version: records of a label and 3x32x32 bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gramjd.experiments.data.files import broken, find

FILES = {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)}
RECORD = 1 + 3 * 32 * 32


def read(folder: Path, part: str, source: str) -> tuple[Tensor, Tensor]:
    """Images `[n, 3, 32, 32]` uint8 and labels `[n]` of one part.

    Args:
        folder: with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.
        part: `train` or `test`.
        source: where the files come from.

    Raises:
        MissingFilesError, InputError: the files are not there, or not as they should be.
    """
    paths = [find(folder, name, source) for name in FILES[part]]
    records = torch.cat([_records(path) for path in paths])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _records(path: Path) -> Tensor:
    data = bytearray(path.read_bytes())
    if not data or len(data) % RECORD:
        raise broken(path, f"{len(data)} bytes", f"a multiple of {RECORD}, a label and an image each")
    records = torch.frombuffer(data, dtype=torch.uint8).view(-1, RECORD)
    if int(records[:, 0].max()) > 9:
        raise broken(path, f"label {int(records[:, 0].max())}", "0 to 9")
    return records
