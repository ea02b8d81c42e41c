"""Squared lengths of rows: the diagonal of the Gram matrix alone, for every kind of factor.

    outer     pair    sum_ts (x_nt.x_ns)(c_nt.c_ns)    2 b T^2 i + 2 R T^2 o operations per group
              rows    |J_r|^2, J formed in chunks      2 R T i o
    gathered  sums over equal ids of one sample        2 R T d
    rows      one pass over them                       2 R d
    convolution  |J_r|^2, J formed in chunks           2 R P i o q    (P output pixels, q kernel offsets)

Source: "ghost norms", Goodfellow 2015 (arXiv:1510.01799) for T = 1, Li et al. 2022 (arXiv:2110.05679) for T > 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.kernels import dispatch
from gramjd.kernels.convolution import Window, row_chunks, unstacked
from gramjd.kernels.cost import Constants, Estimate, Prices, chunk, constants_of, kept, quickest
from gramjd.kernels.outer import Extent, extent, outer_rows
from gramjd.kernels.symmetric import even

# From so many multiply-adds on PyTorch calls a library for each product of a batch.
LOOPED = 400


def norms_rows(J: Tensor, dtype: torch.dtype) -> Tensor:
    """`|J_r|^2` [R] for J [R, d].

    >>> norms_rows(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.float32)
    tensor([25.,  1.])
    """
    return torch.linalg.vector_norm(J, dim=1, dtype=dtype).square_()


def norms_outer(x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    """`|sum_t c_(k,n,t) x_(n,t)^T|^2` [K b], summed over groups, by the quicker route.

    Args:
        x: [g, b, T, i].
        c: [K, g, b, T, o].
        dtype: of the result and of all products.
    """
    e = extent(x, c)
    name = outer_route(e, constants_of(c.device.type, dtype))
    run = dispatch.implementation(f"norms.{name}", c.device, x.dtype, c.dtype, dtype) or OUTER[name]
    total = torch.zeros(e.K, e.b, dtype=dtype, device=c.device)
    for group in range(e.g):
        total += run(x[group], c[:, group], dtype)
    return total.view(e.K * e.b)


@kept
def outer_route(e: Extent, known: Constants) -> str:
    """One pass for one position, else the quicker route whose temporaries fit (`cost.quickest`)."""
    return "single" if e.T == 1 else quickest({name: estimate(name, e, known) for name in ESTIMATES})


def estimate(route: str, e: Extent, known: Constants) -> Estimate:
    """What a route takes; a function of its arguments and `cost.chunk()` alone."""
    found = ESTIMATES[route](e, Prices(known))
    return found._replace(seconds=e.g * found.seconds)


def _calls(products: int, operations: int) -> float:
    """Calls that a batch takes beside its multiply-adds: `products` of so many `operations` each."""
    return products / 12 if operations >= LOOPED else 0.0


def _paired(K: int, b: int, T: int) -> int:
    """Samples whose positions are paired at a time."""
    return even(b, chunk() // max(1, (K + 1) * T * T))


def _estimate_pair(e: Extent, p: Prices) -> Estimate:
    step = _paired(e.K, e.b, e.T)
    strips = -(-e.b // step)
    R, pairs = e.K * e.b, e.T * e.T
    work = p.batch(e.b, e.T, e.T, e.i) + p.batch(R, e.T, e.T, e.o)
    calls = 12 * strips + _calls(e.b, pairs * e.i) + _calls(R, pairs * e.o)
    return Estimate(work + p.passes(4 * R * pairs, calls), step * (e.K + 1) * pairs)


def _formed(K: int, b: int, i: int, o: int) -> tuple[int, int]:
    """Samples and outputs for which rows are formed at a time."""
    samples = even(b, chunk() // max(1, K * i * o))
    return samples, even(o, chunk() // max(1, K * samples * i))


def _estimate_rows(e: Extent, p: Prices) -> Estimate:
    samples, outputs = _formed(e.K, e.b, e.i, e.o)
    chunks = -(-e.b // samples) * -(-e.o // outputs)
    R = e.K * e.b
    work = chunks * p.batch(samples, e.K * outputs, e.i, e.T)
    calls = chunks * (15 + _calls(samples, e.K * outputs * e.i * e.T))
    return Estimate(work + p.passes(3 * R * e.o * (e.i + e.T), calls), e.K * samples * e.i * outputs)


ESTIMATES = {"pair": _estimate_pair, "rows": _estimate_rows}


def _single(x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    inputs, outputs = (torch.linalg.vector_norm(t.squeeze(-2), dim=-1, dtype=dtype) for t in (x, c))
    return outputs.mul_(inputs).square_()


def _pair(x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    K, b, T, _ = c.shape
    total = torch.empty(K, b, dtype=dtype, device=c.device)
    step = _paired(K, b, T)
    for lo in range(0, b, step):
        X, C = x[lo : lo + step].to(dtype), c[:, lo : lo + step].to(dtype)
        total[:, lo : lo + step] = (C @ C.mT).mul_(X @ X.mT).sum((2, 3))
    return total


def _rows(x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    K, b, _, o = c.shape
    i = x.shape[-1]
    total = torch.zeros(K, b, dtype=dtype, device=c.device)
    samples, outputs = _formed(K, b, i, o)
    for n in range(0, b, samples):
        for lo in range(0, o, outputs):
            J = outer_rows(x[n : n + samples], c[:, n : n + samples, :, lo : lo + outputs], dtype)
            total[:, n : n + samples] += torch.linalg.vector_norm(J, dim=(2, 3)).square_()
    return total


OUTER = {"single": _single, "pair": _pair, "rows": _rows}


def norms_gathered(ids: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    """`|J_(k,n)|^2` [K b] where row `ids[n, t]` of a table receives c_(k,n,t): ids [b, T], c [K, b, T, d]."""
    K, b, T, d = c.shape
    total = torch.zeros(K, b, dtype=dtype, device=c.device)
    step = max(1, chunk() // max(1, K * T * d))
    span = int(ids.max()) + 1 if ids.numel() else 1
    for lo in range(0, b, step):
        part = c[:, lo : lo + step].to(dtype).flatten(1, 2)
        owner = torch.arange(min(step, b - lo), device=c.device)[:, None]
        pairs, place = torch.unique((owner * span + ids[lo : lo + step]).flatten(), return_inverse=True)
        sums = torch.zeros(K, len(pairs), d, dtype=dtype, device=c.device).index_add_(1, place, part)
        lengths = torch.linalg.vector_norm(sums, dim=2).square_()
        total[:, lo : lo + step].index_add_(1, pairs.div(span, rounding_mode="floor"), lengths)
    return total.view(K * b)


def norms_convolution(x: Tensor, c: Tensor, w: Window, dtype: torch.dtype) -> Tensor:
    """`|J_(k,n)|^2` [K b] of a convolution's weight; arguments as in `gram_convolution`, also with stacked `x`."""
    x, c = unstacked(x, c)
    K, b = c.shape[:2]
    total = torch.zeros(b * K, dtype=dtype, device=c.device)
    for J in row_chunks(x, c, w, dtype):
        total += norms_rows(J, dtype)
    return total.view(b, K).T.reshape(K * b)
