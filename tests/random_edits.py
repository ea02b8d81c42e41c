"""More operations of random programs: edits in place, strided views, scatters, sparse and solved systems."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tests.random_layers import Needs, Run, axes

if TYPE_CHECKING:
    from tests.strategies_graphs import Hand


def written(h: Hand, x: Tensor) -> Tensor:
    """An in-place edit of a slice along a drawn axis."""
    d, y = h.dim(x), x.clone()
    other = h.like(x)
    first, last = y.select(d, 0), other.select(d, -1).sin()
    edits = [
        lambda: first.copy_(last),
        lambda: y.narrow(d, 0, 1).mul_(2),
        lambda: first.mul_(last),
        lambda: first.tanh_(),
        lambda: y.narrow(d, 0, 1).addcmul_(last.unsqueeze(d), last.unsqueeze(d), value=0.3),
        lambda: y.copy_(other),
        lambda: y.transpose(0, d).select(0, 0).sub_(last if d == 0 else other.transpose(0, d).select(0, -1)),
        lambda: y.flatten()[::2].mul_(3),
    ]
    edits[h.int(0, len(edits) - 1)]()
    return y


def strided(h: Hand, x: Tensor) -> Tensor:
    """Windows of two steps along a drawn axis, by strides."""
    y, d = x.clone(), h.dim(x)
    n = max(1, y.shape[d] - 1)
    size, stride = list(y.shape), list(y.stride())
    size[d] = n
    return y.as_strided((*size, min(2, y.shape[d])), (*stride, stride[d]))


def reduced_at(h: Hand, x: Tensor) -> Tensor:
    """Elements reduced where an index says, which may be the same for whole slices."""
    d, n = h.dim(x), h.int(1, 4)
    shape = list(x.shape)
    shape[d] = n
    line = torch.randint(0, n, (x.shape[d],)).view([-1 if k == d else 1 for k in range(x.dim())])
    ids = line.expand(x.shape) if h.flag() else torch.randint(0, n, x.shape)
    how = ["sum", "mean", "amax", "prod"][h.int(0, 3)]
    return torch.ones(shape).scatter_reduce(d, ids, x, how, include_self=h.flag())


def gathered_at(h: Hand, x: Tensor) -> Tensor:
    d, n = h.dim(x), h.int(1, 4)
    shape = [n if k == d else size for k, size in enumerate(x.shape)]
    line = torch.randint(0, x.shape[d], (n,)).view([-1 if k == d else 1 for k in range(x.dim())])
    return x.gather(d, line.expand(shape) if h.flag() else torch.randint(0, x.shape[d], shape))


def sparse(h: Hand, x: Tensor) -> Tensor:
    """A sparse matrix of data from the left."""
    n = x.shape[0]
    matrix = torch.rand(h.int(1, 4), n) * (torch.rand(1, n) > 0.4)
    return matrix.to_sparse() @ x if h.flag() else torch.sparse.mm(matrix.to_sparse(), x)


def solved(h: Hand, x: Tensor) -> Tensor:
    """A linear system whose matrix all columns share."""
    n = x.shape[-2]
    return torch.linalg.solve(torch.eye(n) * 3 + 0.3 * h.weight(n, n).tanh(), x)


def distances(h: Hand, x: Tensor) -> Tensor:
    return torch.cdist(x, h.weight(h.int(1, 3), x.shape[-1]) + 3)


EDITS: dict[str, tuple[Needs, Run]] = {
    "written": (axes(2), written),
    "strided": (axes(1, 3), strided),
    "reduced at": (axes(1), reduced_at),
    "gathered at": (axes(1), gathered_at),
    "sparse": (axes(2, 2), sparse),
    "solved": (axes(2), solved),
    "distances": (axes(2), distances),
}
