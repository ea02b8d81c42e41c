"""Equations with one matrix for all rows, each row solving for a subset of the unknowns of its own.

Gathered factorisations take `sum_i k_i^3` operations for subsets of size k_i; conjugate gradients take a product
`[r, m] x [m, m]` an iteration, in which an operation costs a tenth. Where most rows have much in common, solving for
that once leaves them the places in which they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from gramjd.aggregation.solvers.threads import one_thread

# 1 MiB of float64 in one batch of factorisations: more would be slower, as it leaves the cache, and is returned to the
# system and cleared anew each time.
_CHUNK_ELEMENTS = 2**17
_GATHER_FROM = 32  # below this m, gathering costs more than the factorisation it shrinks
_SHARE_FROM = 48
_WELL_CONDITIONED = 1e-4  # the smallest pivot of what is inverted for all rows
_PRODUCTS_FROM = 48
_WORTH = 1.5  # how many times smaller the subsets must become to be worth another view
_SLACK = 1e-11
_CLOSE = 1e-12
_SWEEPS, _REDUCTION, _MOST = 4, 1e-6, 30


def solve_on(A: Tensor, b: Tensor, free: Tensor, smooth: bool = False) -> Tensor:
    """x [r, m] with `x A = b` on the entries `free` [r, m] and zero elsewhere, for a positive definite A.

    `smooth` says that conjugate gradients are worth a try; who they do not serve is done again.
    """
    if not smooth or len(A) < _PRODUCTS_FROM or 2 * len(b) < len(A):
        return _each(_by_cholesky, A, b, free)
    x, off = _by_conjugate_gradients(A, b, free)
    stuck = (~(off <= _SLACK * (1 + x.abs().amax(1)))).nonzero()[:, 0]
    if len(stuck):
        x[stuck] = _each(_by_cholesky, A, b[stuck], free[stuck])
    return x


def solve_general(A: Tensor, b: Tensor, free: Tensor) -> Tensor:
    """x [r, m] with `x A = b` on the entries `free` [r, m] and zero elsewhere, for an A that need not be symmetric."""
    return _each(_by_lu, A, b, free)


def shared_view(A: Tensor, Q: Tensor, free: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """`(shared, K, q)`, the problem `y = Q + x A` with x and y having changed places at what most rows have free.

    That is a principal pivot transform: `q` [r, m] is the solution (x at `shared` [m], y elsewhere) for who has just
    that free, and a row solves for the places in which it differs: there, z is y at `shared` and x elsewhere, and
    the solution is `q + z K`. K [m, m] is positive definite as a form, but not symmetric.

    None if rows differ in about as much as they have free, or if A is too close to singular to be inverted for all.
    """
    if len(A) < _SHARE_FROM:
        return None
    shared = 2 * free.sum(0) > len(free)
    if _WORTH * float((free ^ shared).sum()) >= float(free.sum()):
        return None
    inside, outside = shared.nonzero()[:, 0], (~shared).nonzero()[:, 0]
    L, failed = torch.linalg.cholesky_ex(A[inside][:, inside])
    if failed or not float(L.diagonal().square().amin()) > _WELL_CONDITIONED:
        return None
    inverse = torch.cholesky_inverse(L)
    across = A[inside][:, outside]
    B = inverse @ across
    order = torch.cat([inside, outside])
    K, q = torch.empty_like(A), torch.empty_like(Q)
    lower = torch.cat([-B.mT, torch.addmm(A[outside][:, outside], across.mT, B, alpha=-1)], 1)
    K[order[:, None], order] = torch.cat([torch.cat([inverse, B], 1), lower])
    q[:, inside] = -Q[:, inside] @ inverse
    q[:, outside] = torch.addmm(Q[:, outside], Q[:, inside], B, alpha=-1)
    return shared, K, q


def _each(solve: Callable[[Tensor, Tensor], Tensor], A: Tensor, b: Tensor, free: Tensor) -> Tensor:
    """A factorisation for every row, one after another: too small each to be shared by threads."""
    with one_thread(A.device):
        return _factored(solve, A, b, free)


def _factored(solve: Callable[[Tensor, Tensor], Tensor], A: Tensor, b: Tensor, free: Tensor) -> Tensor:
    m = len(A)
    if m < _GATHER_FROM:
        blocks = torch.where(free[:, :, None] & free[:, None, :], A, 0.0)
        blocks.diagonal(dim1=1, dim2=2).add_(~free)
        return solve(blocks, torch.where(free, b, 0.0))
    # What fills a block up to the size of its batch is taken from one more row and column, of zeros.
    flat, b = pad(A, (0, 1, 0, 1)).view(-1), pad(b, (0, 1))
    x = torch.zeros_like(b)
    for rows, index in of_similar_size(free):
        k = index.shape[1]
        places = (index * (m + 1))[:, :, None] + index[:, None, :]
        blocks = flat.index_select(0, places.view(-1)).view(-1, k, k)
        blocks.diagonal(dim1=1, dim2=2).add_(index == m)
        x[rows[:, None], index] = solve(blocks, b[rows].gather(1, index))
    return x[:, :m]


def of_similar_size(free: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of rows whose subsets differ little in size: rows [n], and their members [n, k], filled up with m."""
    sizes, order = free.sum(1).sort()
    row, member = free[order].nonzero().unbind(1)
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(row), device=free.device) - starts[row]
    counts, firsts = sizes.tolist(), [*starts.tolist(), len(row)]
    start = 0
    while start < len(counts):
        most = max(int(1.2 * counts[start]), counts[start] + 16)
        end = start + 1
        while end < len(counts) and counts[end] <= most and (end - start) * most * most < _CHUNK_ELEMENTS:
            end += 1
        part = slice(firsts[start], firsts[end])
        index = torch.full((end - start, max(counts[end - 1], 1)), free.shape[1], device=free.device)
        index[row[part] - start, place[part]] = member[part]
        yield order[start:end], index
        start = end


def _by_cholesky(blocks: Tensor, b: Tensor) -> Tensor:
    return torch.cholesky_solve(b[:, :, None], torch.linalg.cholesky_ex(blocks)[0])[:, :, 0]


def _by_lu(blocks: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve_ex(blocks.mT, b)[0]


def _by_conjugate_gradients(A: Tensor, b: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Sweeps in float32, in which products take half the time, each on what float64 says is left: x, and what is."""
    A32, mask = A.float(), free.float()
    x, r = torch.zeros_like(b), b * free
    off = r.abs().amax(1)
    for _ in range(_SWEEPS):
        size = off.clamp_min(1e-300)[:, None]
        step, converged = _sweep(A32, (r / size).float(), mask)
        x.addcmul_(step, size)
        r = torch.addmm(b, x, A, alpha=-1).mul_(free)
        off = r.abs().amax(1)
        if not converged or float(off.amax()) <= _CLOSE:
            break
    return x, off


def _sweep(A: Tensor, r: Tensor, mask: Tensor) -> tuple[Tensor, bool]:
    """Conjugate gradients from zero, and whether they reached the reduction in time."""
    x, p, Ap = torch.zeros_like(r), r.clone(), torch.empty_like(r)
    rho = r.square().sum(1, keepdim=True)
    goal = _REDUCTION**2 * float(rho.amax())
    for k in range(_MOST):
        torch.mm(p, A, out=Ap).mul_(mask)
        # A row that has converged gets steps of zero instead of 0 / 0.
        step = rho / (p * Ap).sum(1, keepdim=True).clamp_min(1e-30)
        x.addcmul_(step, p)
        r.addcmul_(step, Ap, value=-1)
        rho, previous = r.square().sum(1, keepdim=True), rho
        if k % 3 == 2 and float(rho.amax()) <= goal:
            return x, True
        torch.addcmul(r, p, rho / previous.clamp_min(1e-30), out=p)
    return x, False
