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
from gramjd.kernels.cost import Constants, Estimate, Prices, chunk, constants_of, kept, quickest
from gramjd.kernels.products import product
from gramjd.kernels.symmetric import add_gram, even
from gramjd.kernels.tracing import rectangle, square, whole


@whole(
    "gathered(Tensor ids, Tensor c, ScalarType dtype) -> Tensor",
    lambda ids, c, dtype: square(c, dtype, c.shape[0], c.shape[1]),
)
def gram_gathered(ids: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    """G [K b, K b], upper, by the quicker route."""
    K, b, T, d = c.shape
    used, place = torch.unique(ids, return_inverse=True)
    if route(K * b, T, len(used), d, constants_of(c.device.type, dtype)) == "pairwise":
        run = dispatch.implementation("gathered.pairwise", c.device, c.dtype, dtype) or _pairwise
        return run(place, c, dtype)
    return _unique(place, len(used), c, dtype)


@kept
def route(R: int, T: int, U: int, d: int, known: Constants) -> str:
    """The quicker route whose temporaries fit (`cost.quickest`): pairs for short sequences over many ids.

    Args:
        R, T, U, d: rows, positions, ids in use, numbers of a row of the table.
        known: constants of the device and the dtype.
    """
    return quickest({name: estimate(name, R, T, U, d, known) for name in ESTIMATES})


def estimate(route: str, R: int, T: int, U: int, d: int, known: Constants) -> Estimate:
    """What a route takes; a function of its arguments and `cost.chunk()` alone."""
    return ESTIMATES[route](R, T, U, d, Prices(known))


def _strip(R: int, T: int) -> int:
    """Rows that are paired with all others at a time."""
    return even(R, chunk() // max(1, T * T * R))


def _estimate_pairwise(R: int, T: int, U: int, d: int, p: Prices) -> Estimate:
    step = _strip(R, T)
    strips = -(-R // step)
    share = (1 + 1 / max(1, strips)) / 2
    work = strips * share * p.product(step * T, R * T, d)
    return Estimate(work + p.passes(5 * share * (R * T) ** 2, 10 + 12 * strips), 2 * step * T * R * T)


def _ids(R: int, U: int, d: int) -> int:
    """Ids in use whose rows of the table are formed at a time."""
    return even(U, chunk() // max(1, R * d))


def _estimate_unique(R: int, T: int, U: int, d: int, p: Prices) -> Estimate:
    step = _ids(R, U, d)
    chunks = -(-U // step)
    # All cotangents are added into every chunk, those of other ids where they do not count; each is a small call.
    passes = p.passes(3 * R * U * d + 3 * chunks * R * T * d, 10 + chunks * (20 + R * T / 50))
    return Estimate(chunks * p.gram(R, step * d) + passes, R * (step + 1) * d)


ESTIMATES = {"pairwise": _estimate_pairwise, "unique": _estimate_unique}


def gathered_rows(ids: Tensor, c: Tensor, lo: int, hi: int, dtype: torch.dtype, memory: Tensor | None = None) -> Tensor:
    """J [K b, hi - lo, d]: the part of the table between two ids, in `memory` [K b (hi - lo) + 1, d] if given."""
    K, b, _, d = c.shape
    last = K * b * (hi - lo)
    # The last row takes what belongs to other ids.
    J = torch.zeros(last + 1, d, dtype=dtype, device=c.device) if memory is None else memory[: last + 1].zero_()
    row = torch.arange(K * b, device=c.device).view(K, b, 1) * (hi - lo)
    slot = torch.where((ids >= lo) & (ids < hi), row + (ids - lo), last)
    J.index_add_(0, slot.flatten(), c.to(dtype).reshape(-1, d))
    return J[:last].view(K * b, hi - lo, d)


def _pairwise(ids: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    K, b, T, d = c.shape
    R = K * b
    C = c.to(dtype).reshape(R * T, d)
    owner = ids.expand(K, b, T).reshape(R * T).to(dtype)  # exact: far fewer than 2^24
    G = torch.zeros(R, R, dtype=dtype, device=c.device)
    step = _strip(R, T)
    for n in range(0, R, step):
        part, rest = slice(n * T, (n + step) * T), slice(n * T, None)
        tile = product(C[part], C[rest].T)
        # Zeros and ones as numbers are made and multiplied several times as fast as a mask is made and applied.
        tile.mul_(torch.eq(owner[part, None], owner[rest], out=torch.empty_like(tile)))
        # In two steps, the first along lines of memory: quicker than both sums at once.
        G[n : n + step, n:] = tile.view(-1, T, R - n, T).sum(1).sum(2)
    return G


def _unique(place: Tensor, used: int, c: Tensor, dtype: torch.dtype) -> Tensor:
    K, b, _, d = c.shape
    G = torch.zeros(K * b, K * b, dtype=dtype, device=c.device)
    step = _ids(K * b, used, d)
    memory = torch.empty(K * b * step + 1, d, dtype=dtype, device=c.device)
    for lo in range(0, used, step):
        add_gram(G, gathered_rows(place, c, lo, min(used, lo + step), dtype, memory).flatten(1))
    return G


@whole(
    "cross_outer_gathered(Tensor x, Tensor c, Tensor ids2, Tensor c2, ScalarType dtype) -> Tensor",
    lambda x, c, ids2, c2, dtype: rectangle(c, c2, dtype),
)
def cross_outer_gathered(x: Tensor, c: Tensor, ids2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    """<head rows, embedding rows> [K b, K2 b2] of a table [o, i] used as both.

    x [b, T, i], c [K, b, T, o] of the head; ids2 [b2, T2], c2 [K2, b2, T2, i] of the embedding;
    sum_ts c_(k,n,t)[ids2_(m,s)] (x_(n,t) . c2_(l,m,s)), in tiles over b.
    """
    K, b, T, _ = c.shape
    K2, b2, T2, i = c2.shape
    C2 = c2.to(dtype).reshape(K2 * b2 * T2, i)
    out = torch.zeros(K, b, K2 * b2, dtype=dtype, device=c.device)
    step = max(1, chunk() // max(1, T * K2 * b2 * T2 * K))
    for lo in range(0, b, step):
        inner = product(x[lo : lo + step].to(dtype).flatten(0, 1), C2.T).view(-1, T, K2, b2 * T2)
        picked = c[:, lo : lo + step].to(dtype).flatten(0, 2).index_select(1, ids2.flatten())
        tile = picked.view(K, -1, T, 1, b2 * T2) * inner
        out[:, lo : lo + step] = tile.view(K, -1, T, K2 * b2, T2).sum((2, 4))
    return out.view(K * b, K2 * b2)
