"""Inner products between the rows of two different factors of one parameter: a rectangle, not a Gram matrix.

    X[(k,n), (l,m)] = <J_(k,n), J'_(l,m)>

for sums of outer products x [g, b, T, i], c [K, g, b, T, o] and x' [g, b', T', i], c' [K', g, b', T', o]; R = K b rows:

    product   T = T' = 1       sum_g (C C'^T) * (X X'^T)              2 b b' i + 2 R R' o operations a group
    pairwise  tiles of both    sum_ts (x_nt.x'_ms)(c_nt.c'_ms)        2 b T b' T' i + 2 R T R' T' o
    rows      chunks of both    J J'^T, formed for some outputs        2 (R T + R' T') i o + 2 R R' i o
    shared    b = b' = 1       <c_k, (X X'^T) c'_l>                   2 T T' (i + R' o) + 2 R R' T o
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.kernels import dispatch
from gramjd.kernels.cost import chunk
from gramjd.kernels.gathered import gathered_rows
from gramjd.kernels.outer import TILE_COST, Extent, extent, outer_rows
from gramjd.kernels.products import add_product, product


def cross_outer(x1: Tensor, c1: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    """Inner products [K1 b1, K2 b2] by the cheapest route.

    Args:
        x1, c1: [g, b1, T1, i] and [K1, g, b1, T1, o].
        x2, c2: [g, b2, T2, i] and [K2, g, b2, T2, o], of the same parameter.
        dtype: of the result and of all products.

    >>> x, c = torch.ones(1, 3, 1, 2), torch.ones(1, 1, 3, 1, 4)
    >>> cross_outer(x, c, x[:, :2], c[:, :, :2], torch.float32)
    tensor([[8., 8.],
            [8., 8.],
            [8., 8.]])
    """
    name = route(extent(x1, c1), extent(x2, c2))
    dtypes = (x1.dtype, c1.dtype, x2.dtype, c2.dtype, dtype)
    kernel = dispatch.implementation("cross." + name, c1.device.type, *dtypes) or CROSS[name]
    return kernel(x1, c1, x2, c2, dtype)


def route(e: Extent, f: Extent) -> str:
    """The route with the fewest operations of those that apply."""
    if e.T == f.T == 1:
        return "product"
    options = ["rows", "shared"] if e.b == f.b == 1 else ["rows", "pairwise"]
    return min(options, key=lambda name: operations(name, e, f))


def operations(route: str, e: Extent, f: Extent) -> int:
    """Multiply-adds of a route, with the tiles of `pairwise` weighted by what moving them costs."""
    R, S = e.K * e.b, f.K * f.b
    return (
        e.g
        * {
            "product": e.b * f.b * e.i + R * S * e.o,
            "pairwise": e.b * e.T * f.b * f.T * e.i + R * e.T * S * f.T * (e.o + TILE_COST),
            "rows": (R * e.T + S * f.T + R * S) * e.i * e.o,
            "shared": e.T * f.T * (e.i + S * e.o) + R * S * e.T * e.o,
        }[route]
    )


def _product(x1: Tensor, c1: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    K, L, b, n = c1.shape[0], c2.shape[0], x1.shape[1], x2.shape[1]
    out = torch.zeros(K * b, L * n, dtype=dtype, device=c1.device)
    for x, c, y, d in zip(x1, c1.unbind(1), x2, c2.unbind(1), strict=True):
        inner = product(x[:, 0].to(dtype), y[:, 0].to(dtype).T)
        pairs = product(c.reshape(K * b, -1).to(dtype), d.reshape(L * n, -1).to(dtype).T)
        out += pairs.view(K, b, L, n).mul_(inner[:, None, :]).view(K * b, L * n)
    return out


def _pairwise(x1: Tensor, c1: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    (g, K, b, T, i, o), (_, L, n, S, _, _) = extent(x1, c1), extent(x2, c2)
    out = torch.zeros(b, K, L, n, dtype=dtype, device=c1.device)
    step = max(1, chunk() // max(1, K * T * L * n * S))
    for group in range(g):
        Y = x2[group].to(dtype).reshape(n * S, i)
        D = c2[:, group].to(dtype).reshape(L * n * S, o)
        for lo in range(0, b, step):
            X = x1[group, lo : lo + step].to(dtype).reshape(-1, i)
            C = c1[:, group, lo : lo + step].to(dtype).transpose(0, 1).reshape(-1, o)
            tile = product(C, D.T).view(-1, K, T, L, n, S)
            tile.mul_(product(X, Y.T).view(-1, 1, T, 1, n, S))
            out[lo : lo + step] += tile.sum((2, 5))
    return out.transpose(0, 1).reshape(K * b, L * n)


def _rows(x1: Tensor, c1: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    (g, K, b, _, i, o), (_, L, n, *_) = extent(x1, c1), extent(x2, c2)
    out = torch.zeros(K * b, L * n, dtype=dtype, device=c1.device)
    step = max(1, chunk() // max(1, (K * b + L * n) * i))
    for group in range(g):
        for lo in range(0, o, step):
            J = outer_rows(x1[group], c1[:, group, :, :, lo : lo + step], dtype).reshape(K * b, -1)
            H = outer_rows(x2[group], c2[:, group, :, :, lo : lo + step], dtype).reshape(L * n, -1)
            add_product(out, J, H.T)
    return out


def _shared(x1: Tensor, c1: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    (g, K, _, T, _, o), (_, L, *_) = extent(x1, c1), extent(x2, c2)
    out = torch.zeros(K, L, dtype=dtype, device=c1.device)
    step = max(1, chunk() // max(1, T * o))
    for group in range(g):
        inner = product(x1[group, 0].to(dtype), x2[group, 0].to(dtype).T)
        C = c1[:, group, 0].to(dtype).reshape(K, T * o)
        for lo in range(0, L, step):
            moved = torch.matmul(inner, c2[lo : lo + step, group, 0].to(dtype))
            add_product(out[:, lo : lo + step], C, moved.reshape(-1, T * o).T)
    return out


CROSS = {"product": _product, "pairwise": _pairwise, "rows": _rows, "shared": _shared}


def cross_gathered(ids1: Tensor, c1: Tensor, ids2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    """Inner products [K1 b1, K2 b2] of embedding rows, through the ids that both use.

    Args:
        ids1, c1: [b1, T1] and [K1, b1, T1, d]: row `ids1[n, t]` of the table receives `c1[k, n, t]`.
        ids2, c2: the same for the other rows.
        dtype: of the result and of all products.
    """
    used = torch.unique(ids1)
    used = used[torch.isin(used, ids2)]
    R, S, d = c1.shape[0] * c1.shape[1], c2.shape[0] * c2.shape[1], c1.shape[-1]
    out = torch.zeros(R, S, dtype=dtype, device=c1.device)
    if not len(used):
        return out
    places = [_places(ids, used) for ids in (ids1, ids2)]
    step = max(1, chunk() // max(1, (R + S) * d))
    for lo in range(0, len(used), step):
        hi = min(len(used), lo + step)
        J, H = (gathered_rows(p, c, lo, hi, dtype).flatten(1) for p, c in zip(places, (c1, c2), strict=True))
        add_product(out, J, H.T)
    return out


def _places(ids: Tensor, used: Tensor) -> Tensor:
    """Position of each id in the sorted `used`, or -1."""
    place = torch.searchsorted(used, ids.contiguous()).clamp_(max=len(used) - 1)
    return torch.where(used[place] == ids, place, -1)
