"""Steps of random programs in which the data decide: tokens that are dropped, sent to experts, put back and pooled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.random_layers import Needs, Run, axes

if TYPE_CHECKING:
    from tests.strategies_graphs import Hand


def tokens(h: Hand, x: Tensor) -> Tensor:
    """[tokens, d]: all axes but the last, which may come in any order."""
    order = list(range(x.dim() - 1))
    return (x.permute(*order[::-1], -1) if h.flag() else x).reshape(-1, x.shape[-1])


def layer(h: Hand, x: Tensor) -> Tensor:
    y = F.linear(x, h.weight(x.shape[-1], x.shape[-1]), h.weight(x.shape[-1]) if h.flag() else None)
    return y.tanh() if h.flag() else F.layer_norm(y, y.shape[-1:], h.weight(y.shape[-1]), eps=0.1)


def experts(h: Hand, x: Tensor) -> Tensor:
    """Each token through one of up to three layers, of which one may do nothing and one may be used twice."""
    flat, n = tokens(h, x), h.int(2, 3)
    chosen = torch.randint(0, n, (len(flat),))
    out = flat if h.flag() else torch.zeros_like(flat)
    for e in range(n):
        (rows,) = torch.where(chosen == e)
        if len(rows) and not (e and h.int(0, 3) == 0):
            out = out.index_add(0, rows, layer(h, flat[rows] if h.flag() else flat.index_select(0, rows)))
    return out.reshape(x.shape) if h.flag() else out


def dropped(h: Hand, x: Tensor) -> Tensor:
    """Tokens that are kept by a mask, as a list."""
    flat = tokens(h, x)
    keep = torch.rand(len(flat)) > h.int(1, 3) / 4
    keep[h.int(0, len(flat) - 1)] = True
    return layer(h, flat[keep]) if h.flag() else flat[keep]


def put_back(h: Hand, x: Tensor) -> Tensor:
    """Tokens that are kept, changed, and put where they were; others are zero or stay."""
    keep = torch.rand(x.shape[:-1]) > h.int(1, 3) / 4
    keep.view(-1)[h.int(0, keep.numel() - 1)] = True
    out = torch.zeros_like(x) if h.flag() else x * 1
    if h.flag():
        return out.index_put(keep.nonzero(as_tuple=True), layer(h, x[keep]), accumulate=h.flag())
    return out.masked_scatter(keep.unsqueeze(-1), layer(h, x[keep]))


def pooled(h: Hand, x: Tensor) -> Tensor:
    """Tokens added up by an owner each, of whom some may have none."""
    flat, n = tokens(h, x), h.int(2, 5)
    return torch.ones(n, flat.shape[1]).index_add(0, torch.randint(0, n, (len(flat),)), flat)


def looked_up(h: Hand, x: Tensor) -> Tensor:
    """A table read at some places of the operand, added to it."""
    ids = torch.randint(0, 5, x.shape[:-1])
    keep = torch.rand(ids.shape) > 0.4
    keep.view(-1)[0] = True
    return x.index_put(keep.nonzero(as_tuple=True), F.embedding(ids[keep], h.weight(5, x.shape[-1])), accumulate=True)


ROUTES: dict[str, tuple[Needs, Run]] = {
    "experts": (axes(2), experts),
    "dropped": (axes(2), dropped),
    "put back": (axes(2), put_back),
    "pooled": (axes(2), pooled),
    "looked up": (axes(2), looked_up),
}
