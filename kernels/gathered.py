"""Gram matrix of embedding rows: row `ids[n, t]` of a table of size V receives c_(k,n,t).

    G[(k,n), (l,m)] = sum over t, s with ids[n,t] = ids[m,s] of c_(k,n,t) . c_(l,m,s)

for ids [b, T] and c [K, b, T, d]; never a tensor of [m, V, d].

    pairwise  compare ids              2 (R T)^2 d operations
    unique    J over the U ids in use  2 R^2 U d
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.kernels import dispatch
from gramjd.kernels.cost import chunk
from gramjd.kernels.outer import TILE_COST
from gramjd.kernels.products import product
from gramjd.kernels.symmetric import add_gram


def gram_gathered(ids: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    """G [K b, K b], upper, by the cheaper route."""
    K, b, T, d = c.shape
    used, place = torch.unique(ids, return_inverse=True)
    if route(K * b, T, len(used), d) == "pairwise":
        run = dispatch.implementation("gathered.pairwise", c.device.type, c.dtype, dtype) or _pairwise
        return run(place, c, dtype)
    return _unique(place, len(used), c, dtype)


def route(R: int, T: int, U: int, d: int) -> str:
    """Pairwise for short sequences over many ids, else the ids in use."""
    return "pairwise" if (R * T) ** 2 * (d + TILE_COST) < 2 * R * U * (R * d + 2 * d) else "unique"


def gathered_rows(ids: Tensor, c: Tensor, lo: int, hi: int, dtype: torch.dtype) -> Tensor:
    """J [K b, hi - lo, d]: the part of the table between two ids."""
    K, b, _, d = c.shape
    J = torch.zeros(K * b, hi - lo + 1, d, dtype=dtype, device=c.device)
    inside = (ids >= lo) & (ids < hi)
    slot = torch.where(inside, ids - lo, hi - lo)
    row = torch.arange(K * b, device=c.device).view(K, b, 1) * (hi - lo + 1)
    J.view(-1, d).index_add_(0, (row + slot).flatten(), c.to(dtype).reshape(-1, d))
    return J[:, : hi - lo]


def _pairwise(ids: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    K, b, T, d = c.shape
    R = K * b
    C = c.to(dtype).reshape(R * T, d)
    owner = ids.expand(K, b, T).reshape(R * T)
    G = torch.zeros(R, R, dtype=dtype, device=c.device)
    step = max(1, chunk() // max(1, T * T * R))
    for n in range(0, R, step):
        part = slice(n * T, (n + step) * T)
        tile = product(C[part], C.T).masked_fill_(owner[part, None] != owner[None, :], 0)
        G[n : n + step] = tile.view(-1, T, R, T).sum((1, 3))
    return G


def _unique(place: Tensor, used: int, c: Tensor, dtype: torch.dtype) -> Tensor:
    K, b, _, d = c.shape
    G = torch.zeros(K * b, K * b, dtype=dtype, device=c.device)
    step = max(1, chunk() // max(1, K * b * d))
    for lo in range(0, used, step):
        J = gathered_rows(place, c, lo, min(used, lo + step), dtype).reshape(K * b, -1)
        add_gram(G, J)
    return G


def cross_outer_gathered(x: Tensor, c: Tensor, ids: Tensor, e: Tensor, dtype: torch.dtype) -> Tensor:
    """<head rows, embedding rows> [K b, L n] of a table used as both.

    x [b, T, d], c [K, b, T, V] of the head; ids [n, S], e [L, n, S, d] of the embedding;
    sum_ts c_(k,b,t)[ids_(n,s)] (x_(b,t) . e_(l,n,s)), in tiles over b.
    """
    K, b, T, _ = c.shape
    L, n, S, d = e.shape
    E = e.to(dtype).reshape(L * n * S, d)
    out = torch.zeros(K, b, L * n, dtype=dtype, device=c.device)
    step = max(1, chunk() // max(1, T * L * n * S * K))
    for lo in range(0, b, step):
        inner = product(x[lo : lo + step].to(dtype).flatten(0, 1), E.T).view(-1, T, L, n * S)
        picked = c[:, lo : lo + step].to(dtype).flatten(0, 2).index_select(1, ids.flatten())
        tile = picked.view(K, -1, T, 1, n * S) * inner
        out[:, lo : lo + step] = tile.view(K, -1, T, L * n, S).sum((2, 4))
    return out.view(K * b, L * n)
