"""Inner products between the rows of two different factors of one parameter: a rectangle, not a Gram matrix.

    X[(k,n), (l,m)] = <J_(k,n), J2_(l,m)>

for sums of outer products x [g, b, T, i], c [K, g, b, T, o] and x2 [g, b2, T2, i], c2 [K2, g, b2, T2, o]:

    product   T = T2 = 1       sum_g (C C2^T) * (X X2^T)             2 b b2 i + 2 R R2 o operations per group
    pairwise  tiles of both    sum_ts (x_nt.x2_ms)(c_nt.c2_ms)       2 b T b2 T2 i + 2 R T R2 T2 o
    rows      chunks of both   J J2^T, formed for some outputs       2 (R T + R2 T2) i o + 2 R R2 i o
    shared    b = b2 = 1       <c_k, (X X2^T) c2_l>                  2 T T2 (i + R2 o) + 2 R R2 T o
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gramjd.kernels import dispatch
from gramjd.kernels.cost import Constants, Estimate, Prices, chunk, constants_of, kept, quickest
from gramjd.kernels.gathered import gathered_rows
from gramjd.kernels.outer import Extent, extent, outer_rows
from gramjd.kernels.products import add_product, product
from gramjd.kernels.symmetric import even
from gramjd.kernels.tracing import rectangle, whole


def cross_outer(x: Tensor, c: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    """Inner products [K b, K2 b2] by the quickest route.

    Args:
        x, c: [g, b, T, i] and [K, g, b, T, o].
        x2, c2: [g, b2, T2, i] and [K2, g, b2, T2, o], of the same parameter.
        dtype: of the result and of all products.

    >>> x, c = torch.ones(1, 3, 1, 2), torch.ones(1, 1, 3, 1, 4)
    >>> cross_outer(x, c, x[:, :2], c[:, :, :2], torch.float32)
    tensor([[8., 8.],
            [8., 8.],
            [8., 8.]])
    """
    name = route(extent(x, c), extent(x2, c2), constants_of(c.device.type, dtype))
    kernel = dispatch.implementation("cross." + name, c.device, *_dtypes(x, c, x2, c2), dtype)
    run = _product if kernel is None and name == "product" else partial(_run, name)
    return run(x, c, x2, c2, dtype)


def _dtypes(*tensors: Tensor) -> list[torch.dtype]:
    return [tensor.dtype for tensor in tensors]


@whole(
    "cross(str route, Tensor x, Tensor c, Tensor x2, Tensor c2, ScalarType dtype) -> Tensor",
    lambda route, x, c, x2, c2, dtype: rectangle(c[:, 0], c2[:, 0], dtype),
)
def _run(route: str, x: Tensor, c: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    kernel = dispatch.implementation("cross." + route, c.device, *_dtypes(x, c, x2, c2), dtype) or CROSS[route]
    return kernel(x, c, x2, c2, dtype)


def options(e: Extent, e2: Extent) -> tuple[str, ...]:
    """The routes that apply; one position each leaves no choice."""
    if e.T == e2.T == 1:
        return ("product",)
    return ("rows", "shared") if e.b == e2.b == 1 else ("rows", "pairwise")


def operations(route: str, e: Extent, e2: Extent) -> int:
    """Multiply-adds of a route."""
    R, R2 = e.K * e.b, e2.K * e2.b
    return (
        e.g
        * {
            "product": e.b * e2.b * e.i + R * R2 * e.o,
            "pairwise": e.b * e.T * e2.b * e2.T * e.i + R * e.T * R2 * e2.T * e.o,
            "rows": (R * e.T + R2 * e2.T + R * R2) * e.i * e.o,
            "shared": e.T * e2.T * (e.i + R2 * e.o) + R * R2 * e.T * e.o,
        }[route]
    )


@kept
def route(e: Extent, e2: Extent, known: Constants) -> str:
    """The quickest route whose temporaries fit (`cost.quickest`)."""
    found = options(e, e2)
    return found[0] if len(found) == 1 else quickest({name: estimate(name, e, e2, known) for name in found})


def estimate(route: str, e: Extent, e2: Extent, known: Constants) -> Estimate:
    """What a route takes; a function of its arguments and `cost.chunk()` alone."""
    found = ESTIMATES[route](e, e2, Prices(known))
    return found._replace(seconds=e.g * found.seconds)


def _estimate_product(e: Extent, e2: Extent, p: Prices) -> Estimate:
    R, R2 = e.K * e.b, e2.K * e2.b
    work = p.product(e.b, e2.b, e.i) + p.product(R, R2, e.o)
    return Estimate(work + p.passes(4 * R * R2, 10), R * R2 + e.b * e2.b)


def _samples(e: Extent, e2: Extent) -> int:
    """Samples of the first factor that are paired with the second one at a time."""
    return even(e.b, chunk() // max(1, e.K * e.T * e2.K * e2.b * e2.T))


def _estimate_pairwise(e: Extent, e2: Extent, p: Prices) -> Estimate:
    step = _samples(e, e2)
    strips = -(-e.b // step)
    M, N = step * e.T, e2.b * e2.T
    work = strips * (p.product(M, N, e.i) + p.product(e.K * M, e2.K * N, e.o))
    passes = p.passes(5 * strips * e.K * M * e2.K * N, 10 + 18 * strips)
    return Estimate(work + passes, M * N * (e.K * e2.K + 1))


def _outputs(e: Extent, e2: Extent) -> int:
    """Outputs for which the rows of both are formed at a time."""
    return even(e.o, chunk() // max(1, (e.K * e.b + e2.K * e2.b) * e.i))


def _estimate_rows(e: Extent, e2: Extent, p: Prices) -> Estimate:
    R, R2, o = e.K * e.b, e2.K * e2.b, _outputs(e, e2)
    chunks = -(-e.o // o)
    formed = p.batch(e.b, e.K * o, e.i, e.T) + p.batch(e2.b, e2.K * o, e.i, e2.T)
    work = chunks * (formed + p.product(R, R2, o * e.i))
    passes = p.passes(4 * (R + R2) * e.i * e.o, 8 + 18 * chunks)
    return Estimate(work + passes, (R + R2) * e.i * o)


def _estimate_shared(e: Extent, e2: Extent, p: Prices) -> Estimate:
    moved = e2.K * e.T * e.o
    work = p.product(e.T, e2.T, e.i) + p.batch(e2.K, e.T, e.o, e2.T) + p.product(e.K, e2.K, e.T * e.o)
    passes = p.passes(e.T * e2.T + 3 * moved, 15 + 5 * moved / chunk())
    return Estimate(work + passes, e.T * e2.T + max(e.T * e.o, chunk()))


ESTIMATES = {
    "product": _estimate_product,
    "pairwise": _estimate_pairwise,
    "rows": _estimate_rows,
    "shared": _estimate_shared,
}


def _product(x: Tensor, c: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    (_, K, b, *_), (_, K2, b2, *_) = extent(x, c), extent(x2, c2)
    out = torch.zeros(K * b, K2 * b2, dtype=dtype, device=c.device)
    for X, C, X2, C2 in zip(x, c.unbind(1), x2, c2.unbind(1), strict=True):
        inner = product(X[:, 0].to(dtype), X2[:, 0].to(dtype).T)
        pairs = product(C.reshape(K * b, -1).to(dtype), C2.reshape(K2 * b2, -1).to(dtype).T)
        out += pairs.view(K, b, K2, b2).mul_(inner[:, None, :]).view(K * b, K2 * b2)
    return out


def _pairwise(x: Tensor, c: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    e, e2 = extent(x, c), extent(x2, c2)
    (g, K, b, T, i, o), (_, K2, b2, T2, _, _) = e, e2
    out = torch.zeros(b, K, K2, b2, dtype=dtype, device=c.device)
    step = _samples(e, e2)
    for group in range(g):
        X2 = x2[group].to(dtype).reshape(b2 * T2, i)
        C2 = c2[:, group].to(dtype).reshape(K2 * b2 * T2, o)
        for lo in range(0, b, step):
            X = x[group, lo : lo + step].to(dtype).reshape(-1, i)
            C = c[:, group, lo : lo + step].to(dtype).transpose(0, 1).reshape(-1, o)
            tile = product(C, C2.T).view(-1, K, T, K2, b2, T2)
            tile.mul_(product(X, X2.T).view(-1, 1, T, 1, b2, T2))
            # In two steps, the first along lines of memory: quicker than both sums at once.
            out[lo : lo + step] += tile.sum(2).sum(4)
    return out.transpose(0, 1).reshape(K * b, K2 * b2)


def _rows(x: Tensor, c: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    e, e2 = extent(x, c), extent(x2, c2)
    R, R2, step = e.K * e.b, e2.K * e2.b, _outputs(e, e2)
    out = torch.zeros(R, R2, dtype=dtype, device=c.device)
    for group in range(e.g):
        for lo in range(0, e.o, step):
            J = outer_rows(x[group], c[:, group, :, :, lo : lo + step], dtype).reshape(R, -1)
            J2 = outer_rows(x2[group], c2[:, group, :, :, lo : lo + step], dtype).reshape(R2, -1)
            add_product(out, J, J2.T)
    return out


def _shared(x: Tensor, c: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    (g, K, _, T, _, o), (_, K2, *_) = extent(x, c), extent(x2, c2)
    out = torch.zeros(K, K2, dtype=dtype, device=c.device)
    step = max(1, chunk() // max(1, T * o))
    for group in range(g):
        inner = product(x[group, 0].to(dtype), x2[group, 0].to(dtype).T)
        C = c[:, group, 0].to(dtype).reshape(K, T * o)
        for lo in range(0, K2, step):
            moved = torch.matmul(inner, c2[lo : lo + step, group, 0].to(dtype))
            add_product(out[:, lo : lo + step], C, moved.reshape(-1, T * o).T)
    return out


CROSS = {"product": _product, "pairwise": _pairwise, "rows": _rows, "shared": _shared}


@whole(
    "cross_gathered(Tensor ids, Tensor c, Tensor ids2, Tensor c2, ScalarType dtype) -> Tensor",
    lambda ids, c, ids2, c2, dtype: rectangle(c, c2, dtype),
)
def cross_gathered(ids: Tensor, c: Tensor, ids2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    """Inner products [K b, K2 b2] of embedding rows, through the ids that both use.

    Args:
        ids, c: [b, T] and [K, b, T, d]: row `ids[n, t]` of the table receives `c[k, n, t]`.
        ids2, c2: the same for the other rows.
        dtype: of the result and of all products.
    """
    run = dispatch.implementation("cross.gathered", c.device, c.dtype, c2.dtype, dtype) or _gathered
    return run(ids, c, ids2, c2, dtype)


def _gathered(ids: Tensor, c: Tensor, ids2: Tensor, c2: Tensor, dtype: torch.dtype) -> Tensor:
    used = torch.unique(ids)
    used = used[torch.isin(used, ids2)]
    R, R2, d = c.shape[0] * c.shape[1], c2.shape[0] * c2.shape[1], c.shape[-1]
    out = torch.zeros(R, R2, dtype=dtype, device=c.device)
    if not len(used):
        return out
    places, places2 = _places(ids, used), _places(ids2, used)
    step = max(1, chunk() // max(1, (R + R2) * d))
    for lo in range(0, len(used), step):
        hi = min(len(used), lo + step)
        J = gathered_rows(places, c, lo, hi, dtype).flatten(1)
        J2 = gathered_rows(places2, c2, lo, hi, dtype).flatten(1)
        add_product(out, J, J2.T)
    return out


def _places(ids: Tensor, used: Tensor) -> Tensor:
    """Position of each id in the sorted `used`, or -1."""
    place = torch.searchsorted(used, ids.contiguous()).clamp_(max=len(used) - 1)
    return torch.where(used[place] == ids, place, -1)
