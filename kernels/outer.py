"""Gram matrix of rows that are sums of outer products: linear layers, matrix products, attention projections.

    J_(k,n) = sum_t c_(k,n,t) x_(n,t)^T per group g,    G[(k,n), (l,m)] = <J_(k,n), J_(l,m)>

with x [g, b, T, i] and c [K, g, b, T, o]; R = K b rows. Four routes with one result:

    product   T = 1           sum_g (C C^T) * (X X^T)               2 b^2 i + 2 R^2 o operations per group
    pairwise  tiles of both   sum_ts (x_nt.x_ms)(c_nt.c_ms)         2 (b T)^2 i + 2 (R T)^2 o
    rows      chunks of J     J J^T, J built for some outputs       2 R T i o + 2 R^2 i o
    shared    b = 1           <c_k, (X X^T) c_l>                    2 T^2 i + 2 R T^2 o + 2 R^2 T o
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.engine import _torch
from gramjd.kernels import dispatch
from gramjd.kernels.cost import Constants, Estimate, Prices, chunk, constants_of, kept, quickest
from gramjd.kernels.products import add_product, product
from gramjd.kernels.symmetric import add_gram, even, gram, mirrored
from gramjd.kernels.tracing import square, whole


class Extent(NamedTuple):
    """The sizes that decide the route: x [g, b, T, i] and c [K, g, b, T, o]."""

    g: int
    K: int
    b: int
    T: int
    i: int
    o: int


def extent(x: Tensor, c: Tensor) -> Extent:
    """Sizes of x [g, b, T, i] and c [K, g, b, T, o]."""
    g, b, T, i = x.shape
    return Extent(g, c.shape[0], b, T, i, c.shape[-1])


def operations(route: str, e: Extent) -> int:
    """Multiply-adds of a route, as if nothing were saved by symmetry but whole pairs of samples."""
    R = e.K * e.b
    return (
        e.g
        * {
            "product": e.b * e.b * e.i + R * R * e.o,
            "pairwise": ((e.b * e.T) ** 2 * e.i + (R * e.T) ** 2 * e.o) // 2,
            "rows": R * e.T * e.i * e.o + R * R * e.i * e.o,
            "shared": e.T**2 * e.i + R * e.T**2 * e.o + R * R * e.T * e.o,
        }[route]
    )


def options(e: Extent) -> tuple[str, ...]:
    """The routes that apply; one position leaves no choice."""
    return ("product",) if e.T == 1 else ("rows", "shared") if e.b == 1 else ("rows", "pairwise")


def route(e: Extent, constants: Constants | None = None) -> str:
    """The quickest route whose temporaries fit (`cost.quickest`); constants: by default those of the CPU in float32.

    >>> route(Extent(g=1, K=1, b=32, T=4, i=512, o=512))
    'pairwise'
    """
    return "product" if e.T == 1 else _quickest(e, constants or constants_of("cpu", torch.float32))


@kept
def _quickest(e: Extent, known: Constants) -> str:
    return quickest({name: estimate(name, e, known) for name in options(e)})


def estimate(route: str, e: Extent, known: Constants) -> Estimate:
    """What a route takes; a function of its arguments and `cost.chunk()` alone."""
    found = ESTIMATES[route](e, Prices(known))
    return found._replace(seconds=e.g * found.seconds)


def tile(e: Extent) -> tuple[int, int]:
    """Outputs and inputs of a chunk of rows: near a square, as narrow products are slow."""
    room = max(1, chunk() // max(1, e.K * e.b))
    side = max(1, math.isqrt(room))
    o = even(e.o, max(side, room // max(1, e.i)))
    i = even(e.i, max(1, room // o))
    return o, i


def pairs(e: Extent) -> int:
    """Samples of a strip of pairs: enough for a fast product, few enough that half of the pairs are left out."""
    room = chunk() // max(1, e.K * e.K * e.T * e.T * e.b)
    return even(e.b, max(1, min(room, -(-64 // (e.K * e.T)), e.b)))


def _estimate_product(e: Extent, p: Prices) -> Estimate:
    R = e.K * e.b
    work = p.product(e.b, e.b, e.i) + p.gram(R, e.o)
    return Estimate(work + p.passes(3 * R * R, 4), R * R + e.b * e.b)


def _estimate_pairwise(e: Extent, p: Prices) -> Estimate:
    step = pairs(e)
    strips = -(-e.b // step)
    share = (1 + 1 / strips) / 2
    M, N = step * e.T, e.b * e.T
    work = strips * share * (p.product(M, N, e.i) + p.product(e.K * M, e.K * N, e.o))
    passes = p.passes(5 * share * (e.K * N) ** 2, 60 + 15 * strips)
    return Estimate(work + passes, M * N * (e.K * e.K + 1))


def _estimate_rows(e: Extent, p: Prices) -> Estimate:
    R = e.K * e.b
    o, i = tile(e)
    chunks = -(-e.o // o) * -(-e.i // i)
    work = chunks * (p.batch(R, o, i, e.T) + p.gram(R, o * i))
    passes = p.passes(4 * R * e.i * e.o, 28 + chunks * (6 + 2 * e.K + p.blocks(R)))
    return Estimate(work + passes, R * o * i)


def _estimate_shared(e: Extent, p: Prices) -> Estimate:
    moved = e.K * e.b * e.T * e.o
    R = e.K * e.b
    work = p.product(e.T, e.T, e.i) + p.batch(R, e.T, e.o, e.T) + p.product(R, R, e.T * e.o)
    passes = p.passes(e.T**2 + 3 * moved, 24 + 5 * moved / chunk())
    return Estimate(work + passes, e.T * e.T + max(e.T * e.o, chunk()))


ESTIMATES = {
    "product": _estimate_product,
    "pairwise": _estimate_pairwise,
    "rows": _estimate_rows,
    "shared": _estimate_shared,
}


def gram_outer(
    x: Tensor,
    c: Tensor,
    dtype: torch.dtype,
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """G [K b, K b], upper, by the quickest route whose temporaries fit, accumulated in `dtype`.

    `known`: a matrix and its Gram matrix, which is used instead of a product if the matrix is C itself, in memory too.
    """
    # One position leaves no choice.
    name = "product" if x.shape[2] == 1 else route(extent(x, c), constants_of(c.device.type, dtype))
    if name == "product" and x.shape[0] == 1 and known is not None and _is_same(known, c, dtype):
        return _times_inner(known[1], x, c.shape[0], dtype)
    return run(name, x, c, dtype)


def run(route: str, x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    """G [K b, K b], upper, by a route of `ROUTES`: the kernel if the backend in force has one, or the torch form."""
    kernel = dispatch.implementation("outer." + route, c.device, x.dtype, c.dtype, dtype)
    return _product(x, c, dtype) if kernel is None and route == "product" else _run(route, x, c, dtype)


def _at_once(route: str, x: Tensor, c: Tensor, dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """The form with the fewest operations among those of one chunk, unless there is a kernel.

    Calls cost nothing there, so that another route than the one chosen may be better.
    """
    e = extent(x, c)
    if e.g > 1 or dispatch.implementation("outer." + route, c.device, x.dtype, c.dtype, dtype) is not None:
        return None
    fitting = [name for name in options(e) if name in AT_ONCE and AT_ONCE[name].fits(e)]
    return AT_ONCE[min(fitting, key=lambda name: operations(name, e))].form if fitting else None


@whole(
    "outer(str route, Tensor x, Tensor c, ScalarType dtype) -> Tensor",
    lambda route, x, c, dtype: square(c, dtype, c.shape[0], x.shape[1]),
    _at_once,
)
def _run(route: str, x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    kernel = dispatch.implementation("outer." + route, c.device, x.dtype, c.dtype, dtype) or ROUTES[route]
    return kernel(x, c, dtype)


def _is_same(known: tuple[Tensor, Tensor], c: Tensor, dtype: torch.dtype) -> bool:
    J, gram = known
    return (
        _torch.storage_of(J) == _torch.storage_of(c)  # a fake tensor has no data pointer
        and J.storage_offset() == c.storage_offset()
        and J.shape == (c.shape[0] * c.shape[2], c.shape[-1])
        and J.is_contiguous()
        and c.is_contiguous()
        and gram.dtype == dtype
        and J.dtype == c.dtype
    )


def _times_inner(grams: Tensor, x: Tensor, K: int, dtype: torch.dtype) -> Tensor:
    """`(C C^T) * (X X^T)` for each pair of the K stacked rows."""
    X = x[0, :, 0].to(dtype)
    b = len(X)
    inner = gram(X)
    return inner.mul_(grams) if K == 1 else (grams.view(K, b, K, b) * mirrored(inner)[:, None, :]).view(K * b, K * b)


def _product(x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    g, K, b, _, i, o = extent(x, c)
    if g == 1:
        C = c.reshape(K * b, o).to(dtype)
        return _times_inner(gram(C), x, K, dtype)
    x = x.reshape(g, b, i).to(dtype)
    c = c.transpose(0, 1).reshape(g, K * b, o).to(dtype)
    grams = (c @ c.mT).view(g, K, b, K, b).mul_((x @ x.mT)[:, None, :, None, :])
    return grams.sum(0).view(K * b, K * b)


def _pairwise(x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    g, K, b, T, i, o = extent(x, c)
    G = torch.zeros(b, K, b, K, dtype=dtype, device=c.device)
    step = pairs(extent(x, c))
    for group in range(g):
        X = x[group].to(dtype).reshape(b * T, i)
        C = c[:, group].to(dtype).transpose(0, 1).reshape(b * K * T, o)
        for n in range(0, b, step):
            s = min(step, b - n)
            strip = product(C[n * K * T : (n + s) * K * T], C[n * K * T :].T).view(s, K, T, b - n, K, T)
            inner = product(X[n * T : (n + s) * T], X[n * T :].T).view(s, 1, T, b - n, 1, T)
            # In two steps, the first along lines of memory: several times as fast as both sums at once.
            G[n : n + s, :, n:] += strip.mul_(inner).sum(2).sum(4)
    return G.view(b, b) if K == 1 else _whole(G, step).permute(1, 0, 3, 2).reshape(K * b, K * b)


def _whole(G: Tensor, step: int) -> Tensor:
    """G [b, K, b, K], computed in strips of `step` samples from the diagonal on, with the rest filled in."""
    strip = torch.arange(len(G), device=G.device) // step
    upper = strip[:, None, None, None] <= strip[:, None]
    return torch.where(upper, G, G.permute(2, 3, 0, 1))


def _rows(x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    x, c = x.detach(), c.detach()  # results are written in place
    g, K, b, _, i, o = extent(x, c)
    G = torch.zeros(K * b, K * b, dtype=dtype, device=c.device)
    outputs, inputs = tile(extent(x, c))
    memory = torch.empty(K * b * outputs * inputs, dtype=dtype, device=c.device)
    for group in range(g):
        for lo in range(0, o, outputs):
            left = c[:, group, :, :, lo : lo + outputs].to(dtype).mT
            for at in range(0, i, inputs):
                right = x[group, :, :, at : at + inputs].to(dtype)
                J = memory[: K * b * left.shape[2] * right.shape[2]].view(K, b, left.shape[2], -1)
                for k in range(K):
                    torch.bmm(left[k], right, out=J[k])
                add_gram(G, J.view(K * b, -1))
    return G


def outer_rows(x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    """J [K, b, o, i] of one group, from x [b, T, i] and c [K, b, T, o]."""
    K, b, T, o = c.shape
    C = c.to(dtype).permute(1, 0, 3, 2).reshape(b, K * o, T)
    return torch.bmm(C, x.to(dtype)).view(b, K, o, -1).transpose(0, 1)


def _shared(x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    g, K, _, T, _, o = extent(x, c)
    G = torch.zeros(K, K, dtype=dtype, device=c.device)
    for group in range(g):
        X = x[group, 0].to(dtype)
        C = c[:, group, 0].to(dtype)
        S = product(X, X.T)
        step = max(1, chunk() // max(1, T * o))
        for lo in range(0, K, step):
            moved = torch.matmul(S, C[lo : lo + step]).reshape(-1, T * o)
            add_product(G[lo : lo + step], moved, C.reshape(K, T * o).T)
    return G


def _pairwise_at_once(route: str, x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    _, K, b, T, i, o = extent(x, c)
    X, C = x[0].to(dtype).reshape(b * T, i), c[:, 0].to(dtype).reshape(K * b * T, o)
    inner = product(X, X.T).view(1, b, T, 1, b, T)
    return (product(C, C.T).view(K, b, T, K, b, T) * inner).sum(2).sum(4).view(K * b, K * b)


def rows_of_one(x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    """J [K, o i] for x [1, 1, T, i] and c [K, 1, 1, T, o]: one product."""
    _, K, _, T, i, o = extent(x, c)
    return product(c[:, 0, 0].to(dtype).mT.reshape(K * o, T), x[0, 0].to(dtype)).view(K, o * i)


def _rows_at_once(route: str, x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    _, K, b, _T, i, o = extent(x, c)
    if b == 1:
        return gram(rows_of_one(x, c, dtype))
    X, C = x[0].to(dtype), c[:, 0].to(dtype)
    return gram(torch.stack([torch.bmm(C[k].mT, X) for k in range(K)]).view(K * b, o * i))


def _shared_at_once(route: str, x: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    _, K, _, T, _, o = extent(x, c)
    X, C = x[0, 0].to(dtype), c[:, 0, 0].to(dtype)
    moved = torch.matmul(product(X, X.T), C).reshape(K, T * o)
    return product(moved, C.reshape(K, T * o).T)


class AtOnce(NamedTuple):
    """A route without chunks: returns True for extents of which one chunk is enough, and the operations."""

    fits: Callable[[Extent], bool]
    form: Callable[..., Tensor]


AT_ONCE = {
    "pairwise": AtOnce(lambda e: pairs(e) >= e.b, _pairwise_at_once),
    "rows": AtOnce(lambda e: tile(e) == (e.o, e.i), _rows_at_once),
    "shared": AtOnce(lambda e: e.K * e.T * e.o <= chunk(), _shared_at_once),
}
ROUTES = {"product": _product, "pairwise": _pairwise, "rows": _rows, "shared": _shared}
