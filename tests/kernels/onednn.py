"""Having all products made by oneDNN, whatever this machine does by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from gramjd.engine import _torch
from gramjd.kernels import products, use_backend

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of PyTorch has no oneDNN"
)


@contextmanager
def onednn_for_everything() -> Iterator[list[tuple[int, ...]]]:
    """However small the product. Gives the shapes [M, K, N] it was asked for."""
    asked: list[tuple[int, ...]] = []
    linear = _torch.product_by_onednn
    with pytest.MonkeyPatch.context() as patch, use_backend("onednn"):
        for name in ("LEAST", "THIN", "WIDE"):
            patch.setattr(products, name, 0)
        patch.setattr(_torch, "product_by_onednn", lambda x, w: asked.append((*x.shape, len(w))) or linear(x, w))
        yield asked
