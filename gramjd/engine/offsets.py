"""The Gram matrix of a parameter whose losses own segments of one factor's positions, where a kernel takes offsets.

Elsewhere `segments` makes factors of equal T of them, padded, which every kernel for positions serves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gramjd.engine.cotangent import index_tensor
from gramjd.engine.factor import Factor, Outer
from gramjd.engine.layout import Owners
from gramjd.engine.segments import repeated
from gramjd.kernels import dispatch, segments

OPERATION = "segments.pairwise"


def gram_by_offsets(factors: Sequence[Factor], dtype: torch.dtype) -> tuple[Owners, Tensor] | None:
    """Losses and their Gram matrix [R, R], upper, in one call; None where there is no kernel or it does not pay.

    Args:
        factors: of one parameter. It takes one product, without stacked rows and groups.
        dtype: of the result and of all products.
    """
    (factor,) = factors if len(factors) == 1 else (None,)
    if not isinstance(factor, Outer) or (OPERATION, factor.c.device.type) not in dispatch.TABLE:
        return None
    if factor.x.shape[0] > 1 or factor.c.shape[0] > 1 or not repeated(factor.owners):
        return None
    live = np.flatnonzero(factor.owners >= 0)
    losses, counts = np.unique(factor.owners[live], return_counts=True)
    _, _, T, i = factor.x.shape
    if not segments.pays(len(live) * T, len(losses), i, factor.c.shape[-1]):
        return None
    device = factor.c.device
    if dispatch.implementation(OPERATION, device, factor.x.dtype, factor.c.dtype, dtype) is None:
        return None
    order = index_tensor(live[np.argsort(factor.owners[live], kind="stable")], device)
    x, c = factor.x[0].index_select(0, order), factor.c[:, 0].index_select(1, order)
    starts = index_tensor(T * np.concatenate([[0], np.cumsum(counts)])[None], device)
    return losses, segments.gram_segments(x.flatten(0, 1), c.flatten(1, 2), starts, dtype)
