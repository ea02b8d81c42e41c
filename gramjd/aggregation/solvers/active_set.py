"""Nonnegative least squares by an active set, one problem at a time: slow, on the CPU, and never wrong-footed.

The backup for problems that pivoting could not finish. It never forms normal equations (it works on a root of C,
which has the root of its condition number), and each step lowers the objective, so it ends.
Source: Lawson and Hanson, Solving least squares problems (1974), chapter 23.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SLACK = 1e-12


def root_of(C: Tensor) -> Tensor:
    """R [k, m] on the CPU with `R^T R = C`, without the directions in which C is zero up to rounding."""
    values, vectors = torch.linalg.eigh(C.cpu())
    keep = values > values[-1] * len(C) * torch.finfo(C.dtype).eps
    return values[keep].sqrt()[:, None] * vectors.mT[keep]


def nonnegative_least_squares(R: Tensor, target: Tensor) -> Tensor:
    """x [m] that minimises `|R x - target|` over x >= 0, for R [k, m] and a target [k], in 3 m + 10 steps at most."""
    m = R.shape[1]
    x = R.new_zeros(m)
    free = torch.zeros(m, dtype=torch.bool)
    for _ in range(3 * m + 10):
        gain = R.mT @ (target - R @ x)
        gain[free] = -torch.inf
        j = int(gain.argmax())
        if not gain[j] > _SLACK * (1 + x.abs().amax()):
            break
        free[j] = True
        x = _move(R, target, x, free)
    return x


def _move(R: Tensor, target: Tensor, x: Tensor, free: Tensor) -> Tensor:
    """Go towards the least squares solution on `free`, dropping (in place) each entry that reaches zero first."""
    while bool(free.any()):
        best = torch.zeros_like(x)
        best[free] = torch.linalg.lstsq(R[:, free], target[:, None], driver="gelsy").solution[:, 0]
        falling = free & (best <= 0)
        if not bool(falling.any()):
            return best
        ratio = torch.where(falling, x / (x - best).clamp_min(1e-300), torch.inf)
        x = x + min(float(ratio.amin()), 1.0) * (best - x)
        free &= ~(falling & ((x <= 0) | (ratio <= ratio.amin())))
        x = torch.where(free, x, 0.0)
    return x
