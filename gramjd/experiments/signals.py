"""What a Gramian and its weights tell about a step, without any gradient in hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def cosine_to_mean(gramian: Tensor, weights: Tensor) -> float:
    """Cosine between the update `J^T w` and the mean gradient `J^T 1 / m`.

    `cos = 1^T G w / sqrt(w^T G w * 1^T G 1)`; NaN where either update is zero.

    Args:
        gramian: `G = J J^T`, `[m, m]`.
        weights: `w`, `[m]`.

    >>> cosine_to_mean(torch.eye(2), torch.tensor([1.0, 0.0]))  # g_1 against (g_1 + g_2) / 2
    0.7071067811865475
    """
    # float64: the two squared lengths are multiplied, which underflows in float32 late in training.
    G, w = gramian.detach().double(), weights.detach().double()
    update, mean = w @ G @ w, G.sum()
    if not (update > 0 and mean > 0):
        return math.nan
    return float((G.sum(0) @ w) / (update.sqrt() * mean.sqrt()))


def cosine_of(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Cosine of two lists of tensors, each taken as one vector; NaN where either is zero.

    Args:
        first: tensors of any shapes.
        second: as many, of the same shapes.

    >>> cosine_of([torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([1.0]), torch.tensor([0.0])])
    0.6
    """
    a, b = (torch.cat([t.detach().double().flatten() for t in tensors]) for tensors in (first, second))
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths > 0 else math.nan


def conflict_share(gramian: Tensor) -> float:
    """Share of the pairs `i < j` of losses whose gradients conflict, `G_ij < 0`; NaN with one loss.

    Args:
        gramian: `G = J J^T`, `[m, m]`.

    >>> conflict_share(torch.tensor([[1.0, -0.5, 0.2], [-0.5, 1.0, 0.0], [0.2, 0.0, 1.0]]))
    0.3333333333333333
    """
    m = len(gramian)
    if m < 2:
        return math.nan
    i, j = torch.triu_indices(m, m, offset=1)
    return float((gramian.detach()[i, j] < 0).double().mean())
