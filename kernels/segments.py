"""Gram matrix of rows that each sum over a segment of positions: what losses own of tokens that a router has sorted.

    G[(k,r), (l,s)] = sum over g, t in (g, r), u in (g, s) of (x_t . x_u) (c_kt . c_lu)

with x [P, i], c [K, P, o] and offsets starts [g, n + 1]: row r of group h is the sum over the positions from
`starts[h, r]` to `starts[h, r + 1]`, and the groups (experts) are parts of one parameter that share no element. Unlike
factors of equal T (`ragged`) nothing is padded, and one call serves segments of any length.

    pairwise  strips of positions    2 sum_g P_g^2 (i + K^2 o) operations, half of them saved for K = 1
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from gramjd.kernels import dispatch
from gramjd.kernels.cost import chunk
from gramjd.kernels.products import product
from gramjd.kernels.symmetric import even
from gramjd.kernels.tracing import host, square, whole


def pays(P: int, R: int, i: int, o: int) -> bool:
    """Returns True if pairs of P positions take fewer operations than the R rows they sum to, and pairs of those.

    >>> pays(512, 64, 768, 768), pays(8192, 64, 768, 768)
    (True, False)
    """
    return P * P * (i + o) / 2 < (P + R * R / 2) * i * o


@whole(
    "segments(Tensor x, Tensor c, Tensor starts, ScalarType dtype) -> Tensor",
    lambda x, c, starts, dtype: square(c, dtype, c.shape[0], starts.shape[1] - 1),
)
def gram_segments(x: Tensor, c: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
    """G [K n, K n], upper, accumulated in `dtype`.

    Args:
        x, c: [P, i] and [K, P, o], the positions of each group sorted by row.
        starts: [g, n + 1], integers that do not decrease in a group; between two groups positions may be left out.
        dtype: of the result and of all products.

    >>> x, c = torch.ones(3, 2), torch.ones(1, 3, 4)
    >>> gram_segments(x, c, torch.tensor([[0, 1, 3]]), torch.float32).triu()
    tensor([[ 8., 16.],
            [ 0., 32.]])
    """
    run = dispatch.implementation("segments.pairwise", c.device, x.dtype, c.dtype, dtype) or _pairwise
    return run(x, c, starts, dtype)


def _pairwise(x: Tensor, c: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
    K, n = c.shape[0], starts.shape[1] - 1
    G = torch.zeros(K, n, K, n, dtype=dtype, device=c.device)
    for bounds in host(starts).tolist():
        lo, hi = bounds[0], bounds[-1]
        lengths = torch.tensor([after - before for before, after in itertools.pairwise(bounds)])
        owner = torch.repeat_interleave(torch.arange(n), lengths)
        _add_group(G, x[lo:hi].to(dtype), c[:, lo:hi].to(dtype), owner.to(c.device), [at - lo for at in bounds])
    return G.view(K * n, K * n)


def _add_group(G: Tensor, x: Tensor, c: Tensor, owner: Tensor, bounds: list[int]) -> None:
    """Add what the positions x [P, i] and c [K, P, o] of one group contribute, each owned by row `owner` [P]."""
    (K, P, _), n = c.shape, G.shape[1]
    step = even(P, chunk() // max(1, P * K * (K + 1)))
    row = 0
    for lo in range(0, P, step):
        while bounds[row + 1] <= lo:
            row += 1
        # With several stacked rows the upper half has pairs of a later and an earlier row, too.
        first = bounds[row] if K == 1 else 0
        hi = min(P, lo + step)
        tile = product(c[:, lo:hi].flatten(0, 1), c[:, first:].flatten(0, 1).T).view(K, hi - lo, K, P - first)
        tile.mul_(product(x[lo:hi], x[first:].T)[None, :, None, :])
        summed = tile.new_zeros(K, hi - lo, K, n).index_add_(3, owner[first:], tile)
        G.index_add_(1, owner[lo:hi], summed)
