"""IDX, the format of MNIST, Fashion-MNIST and Kuzushiji-MNIST."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from gramjd.experiments.data.files import broken, find

UNSIGNED_BYTES = 0x08
PARTS = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> Tensor:
    """The array in an IDX file of unsigned bytes, gzipped if its name ends in .gz; uint8, of the shape in its header.

    The header is two zero bytes, the type, the number of dimensions, and each dimension as 32 bits, big endian.

    Raises:
        InputError: the file is not in that format, or shorter or longer than its header says.
    """
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTES:
        raise broken(path, f"{data[:4].hex(' ')} at its start", "00 00 08, then the number of dimensions")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise broken(path, f"{len(data)} bytes", f"a header of {start}")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise broken(path, f"{len(data) - start} bytes after the header", f"the {math.prod(shape)} of shape {shape}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)[start:].view(shape)


def read(folder: Path, part: str, source: str) -> tuple[Tensor, Tensor]:
    """Images `[n, 1, h, w]` uint8 and labels `[n]` of one part of an MNIST-like set.

    Args:
        folder: with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same with `t10k`, or their .gz.
        part: `train` or `test`.
        source: where the files come from.

    Raises:
        MissingFilesError, InputError: the files are not there, or not as they should be.
    """
    stem = PARTS[part]
    images = read_idx(find(folder, f"{stem}-images-idx3-ubyte", source, compressed=True))
    labels_file = find(folder, f"{stem}-labels-idx1-ubyte", source, compressed=True)
    labels = read_idx(labels_file)
    if labels.shape != images.shape[:1]:
        raise broken(labels_file, f"labels of shape {list(labels.shape)}", f"{len(images)}, one per image")
    return images.unsqueeze(1), labels
