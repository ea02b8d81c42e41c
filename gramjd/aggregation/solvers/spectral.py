"""Functions of the eigenvalues of a Gramian, without those that are only rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation.solvers.rounding import of_eigenvalues


def on_range(A: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues [m], ascending, eigenvectors [m, m] and a mask [m] of the eigenvalues that are not zero.

    Zero is what rounding the entries of `A` to `eps` can make of a zero, a part of the largest eigenvalue. The cut is
    relative, so no scale of `A` changes it.
    """
    values, vectors = torch.linalg.eigh(A)
    return values, vectors, values > of_eigenvalues(len(A), eps) * values[-1].clamp_min(0)


def pseudo_inverse_times(A: Tensor, b: Tensor, eps: float) -> Tensor:
    """`A^+ b`, [m], for a positive semi-definite `A` [m, m].

    >>> import torch
    >>> pseudo_inverse_times(torch.ones(2, 2), torch.tensor([1.0, 0.0]), 1e-7)
    tensor([0.2500, 0.2500])
    """
    values, vectors, keep = on_range(A, eps)
    inverse = torch.where(keep, values.reciprocal(), 0.0)
    return vectors @ (inverse * (vectors.mT @ b))
