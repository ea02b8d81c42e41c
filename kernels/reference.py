"""The definitions of the operations, in float64, slow and large as they are: tests compare the routes with them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def outer_rows(x: Tensor, c: Tensor) -> Tensor:
    """J [K b, g o i] with `J_(k,n) = sum_t c_(k,n,t) x_(n,t)^T` per group, of x [g, b, T, i] and c [K, g, b, T, o]."""
    return torch.einsum("gbti,kgbto->kbgoi", x.double(), c.double()).flatten(0, 1).flatten(1)


def gram_outer(x: Tensor, c: Tensor) -> Tensor:
    """`J J^T` [K b, K b] of these rows."""
    J = outer_rows(x, c)
    return J @ J.T


def cross_outer(x: Tensor, c: Tensor, x2: Tensor, c2: Tensor) -> Tensor:
    """`J J2^T` [K b, K2 b2] of two such sets of rows."""
    return outer_rows(x, c) @ outer_rows(x2, c2).T


def norms_outer(x: Tensor, c: Tensor) -> Tensor:
    """`|J_r|^2` [K b] of these rows."""
    return outer_rows(x, c).square().sum(1)


def weighted_outer(x: Tensor, c: Tensor, w: Tensor) -> Tensor:
    """`sum_r w_r J_r` [g, o, i] of these rows, with w [K b]."""
    K, _, b = c.shape[:3]
    return torch.einsum("kn,kgnto,gnti->goi", w.double().view(K, b), c.double(), x.double())


def gram_rows(J: Tensor) -> Tensor:
    """`J J^T` [R, R] of J [R, d]."""
    return torch.einsum("rd,sd->rs", J.double(), J.double())


def gathered_rows(ids: Tensor, c: Tensor, size: int) -> Tensor:
    """J [K b, size d]: row `ids[n, t]` of a table of `size` rows receives c_(k,n,t), for ids [b, T], c [K, b, T, d]."""
    return torch.einsum("btv,kbtd->kbvd", one_hot(ids.long(), size).double(), c.double()).flatten(0, 1).flatten(1)


def gram_gathered(ids: Tensor, c: Tensor, size: int) -> Tensor:
    """`J J^T` [K b, K b] of these rows."""
    J = gathered_rows(ids, c, size)
    return J @ J.T


def convolution_rows(x: Tensor, c: Tensor, weight_shape: Sequence[int], **options: object) -> Tensor:
    """J [K, b, *weight_shape] by one backward pass of the convolution per row."""
    rows = []
    for cotangent in c.double():
        for n in range(x.shape[0]):
            weight = torch.zeros(*weight_shape, dtype=torch.float64, requires_grad=True)
            y = torch.convolution(x[n : n + 1].double(), weight, None, **options)  # type: ignore[arg-type]
            rows.append(torch.autograd.grad(y, weight, cotangent[n : n + 1])[0])
    return torch.stack(rows).view(c.shape[0], x.shape[0], *weight_shape)


def segment_rows(x: Tensor, c: Tensor, starts: Tensor) -> Tensor:
    """J [K n, g o i]: the sum of c_kt x_t^T over the positions t from `starts[h, r]` to `starts[h, r + 1]`.

    Of x [P, i], c [K, P, o] and starts [g, n + 1].
    """
    rows = [
        torch.einsum("ti,kto->koi", x.double()[lo:hi], c.double()[:, lo:hi]).flatten(1)
        for bounds in starts.tolist()
        for lo, hi in itertools.pairwise(bounds)
    ]
    g, n = starts.shape[0], starts.shape[1] - 1
    return torch.stack(rows).view(g, n, len(c), -1).permute(2, 1, 0, 3).flatten(0, 1).flatten(1)


def gram_segments(x: Tensor, c: Tensor, starts: Tensor) -> Tensor:
    """`J J^T` [K n, K n] of these rows."""
    J = segment_rows(x, c, starts)
    return J @ J.T
