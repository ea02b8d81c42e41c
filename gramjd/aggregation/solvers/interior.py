"""An interior-point method for many problems at once that looks at no value: as many steps whatever the data say.

Per problem: `x >= 0, y = q + x A >= 0, x y = 0` with one positive semi-definite `A` [m, m] for all. Predictor and
corrector share one factorisation of `A + diag(y / x)` a step, which is regular even where `A` is not, so neither rank
nor conditioning matters much, and no guess is needed. Nothing is asked of the host, so a GPU never waits for it.
Source: Mehrotra, On the implementation of a primal-dual interior point method (1992); for quadratic objectives,
Nocedal and Wright, Numerical optimization (2006), algorithm 16.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 30
_BACK_OFF = 0.995  # the part of the way to the boundary that a step may go
_DAMPING = 1e-14  # on the diagonal of what is factored alone: it slows steps along a null space, and moves no answer
_CHUNK_ELEMENTS = 2**24  # 128 MiB of float64 in one batch of factorisations
_SMALLEST = 1e-200
_EXACT = 1e-12


def interior(A: Tensor, Q: Tensor, steps: int = _STEPS) -> Tensor:
    """`X >= 0` [r, m] for all rows of `Q` [r, m], whose entries should be of order one.

    >>> import torch
    >>> A = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
    >>> interior(A, A)
    tensor([[0.0000, 0.5000],
            [0.5000, 0.0000]], dtype=torch.float64)
    """
    rows = max(_CHUNK_ELEMENTS // (len(A) * len(A)), 1)
    return torch.cat([_settle(A, q, *_follow_path(A, q, steps)) for q in Q.split(rows)])


def _follow_path(A: Tensor, q: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Multipliers and slacks, both positive; their products shrink by an order of magnitude or so a step."""
    x, y = torch.ones_like(q), torch.ones_like(q)
    for _ in range(steps):
        ratio = y / x
        system = _Factored(A + torch.diag_embed(ratio + _DAMPING))
        off = torch.addmm(q, x, A)  # what y should be
        gap = (x * y).mean(1, keepdim=True)
        dx = system.solve(-off)
        dy = -y - ratio * dx
        reach = _reach(x, y, dx, dy)
        ahead = ((x + reach * dx) * (y + reach * dy)).mean(1, keepdim=True)
        aim = gap * (ahead / gap).clamp(0, 1) ** 3 - dx * dy
        dx = system.solve(aim / x - off)
        dy = aim / x - y - ratio * dx
        reach = _BACK_OFF * _reach(x, y, dx, dy)
        usable = ~system.failed & dx.isfinite().all(1, keepdim=True) & dy.isfinite().all(1, keepdim=True)
        x = torch.where(usable, x + reach * dx, x).clamp_min(_SMALLEST)
        y = torch.where(usable, y + reach * dy, y).clamp_min(_SMALLEST)
    return x, y


def _reach(x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Per row [r, 1], the part of a step, at most all of it, that leaves x and y nonnegative."""
    to_x = torch.where(dx < 0, -x / dx, torch.inf)
    to_y = torch.where(dy < 0, -y / dy, torch.inf)
    return torch.minimum(to_x, to_y).amin(1, keepdim=True).clamp_max(1.0)


def _settle(A: Tensor, q: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Solve once more with the multipliers below their slacks at zero; keep that where it is the better answer."""
    free = x > y
    blocks = torch.where(free[:, :, None] & free[:, None, :], A, 0.0)
    blocks.diagonal(dim1=1, dim2=2).add_(torch.where(free, _DAMPING, 1.0))
    system = _Factored(blocks)
    exact = system.solve(torch.where(free, -q, 0.0)).clamp_min(0)
    as_good = optimality_error(A, q, exact) <= optimality_error(A, q, x).clamp_min(_EXACT)
    better = ~system.failed & as_good[:, None]
    return torch.where(better, exact, x)


class _Factored:
    """Cholesky factors of positive definite `M` [r, m, m], scaled to a unit diagonal first."""

    def __init__(self, M: Tensor) -> None:
        """Factor; `failed` [r, 1] says where that did not work."""
        self._scale = M.diagonal(dim1=1, dim2=2).rsqrt()
        self._L, info = torch.linalg.cholesky_ex(M.mul_(self._scale[:, :, None]).mul_(self._scale[:, None, :]))
        self.failed = (info > 0)[:, None]

    def solve(self, b: Tensor) -> Tensor:
        """x [r, m] with `M x = b`, per row."""
        return torch.cholesky_solve((b * self._scale)[:, :, None], self._L)[:, :, 0] * self._scale


def optimality_error(A: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """Per row [r], how far `y = q + x A` and `x >= 0` are from `y >= 0, x y = 0`, less what rounding must leave."""
    y = torch.addmm(q, x, A)
    total = 1 + x.sum(1)
    rounding = 4 * torch.finfo(A.dtype).eps * total
    return torch.maximum(-y.amin(1) - rounding, (x * y).sum(1).abs() - rounding * total)
