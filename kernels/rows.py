"""Gram matrix of given rows: biases, norm scales, broadcast parameters, anything materialised."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.kernels import dispatch
from gramjd.kernels.symmetric import gram
from gramjd.kernels.tracing import square, whole


def gram_rows(J: Tensor, dtype: torch.dtype) -> Tensor:
    """`J J^T` [R, R], upper, for J [R, d]: R^2 d to 2 R^2 d operations, one pass over J while R is small."""
    kernel = dispatch.implementation("rows", J.device, J.dtype, dtype)
    return gram(J.to(dtype)) if kernel is None else _by_kernel(J, dtype)


@whole("gram_rows(Tensor J, ScalarType dtype) -> Tensor", lambda J, dtype: square(J, dtype, 1, len(J)))
def _by_kernel(J: Tensor, dtype: torch.dtype) -> Tensor:
    kernel = dispatch.implementation("rows", J.device, J.dtype, dtype)
    assert kernel is not None, "the caller has found one"
    return kernel(J, dtype)


def gram_own_slices(J: Tensor, dtype: torch.dtype) -> Tensor:
    """Blocks [b, K, K] for J [b, K, d] whose slices n lie in disjoint parts of the parameter."""
    J = J.to(dtype)
    return J @ J.mT
