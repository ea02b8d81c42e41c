"""What rounding leaves of a zero. Below it, a length or an eigenvalue is treated as zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps


# An exact answer is one of a Gramian whose entries are known to so many roundings per loss.
KNOWN = 8
# Below this smallest pivot cosines are treated as singular: a solve could lose more than half of the digits.
SINGULAR = 1e-8


def room(m: int) -> float:
    """What an exact solver may leave of a zero, of the size of its terms: well within what is promised."""
    return m * EPS


def residual(C: Tensor, Q: Tensor, X: Tensor, size: Tensor) -> Tensor:
    """Per row [n], how far `X >= 0` [n, m] is from `Y = Q + X C >= 0`, and zero where X is not, by the terms of Y.

    Args:
        C: [m, m], cosines.
        Q: [n, m], sums of `size` [n] cosines.
        X: [n, m].
    """
    Y = torch.addmm(Q, X, C)
    return torch.where(X > 0, Y.abs(), -Y).amax(1) / (size + X.sum(1)).clamp_min(1e-300)


def of_square(x: Tensor, eps: float) -> Tensor:
    """The size up to which `x^T C x` cannot be told from zero, for cosines `C` [m, m] rounded to `eps`; x is [m].

    Independent errors in the entries of C add up like `eps |x|^2`; those of the float64 arithmetic are not
    independent, and get the worst case.
    """
    return 4 * eps * x.square().sum() + 16 * len(x) * EPS * x.abs().sum().square()


def of_eigenvalues(m: int, eps: float) -> float:
    """The part of the largest eigenvalue up to which another one cannot be told from zero, entries rounded to `eps`.

    >>> f"{of_eigenvalues(4, 1e-7):.0e}"
    '8e-07'
    """
    return max(4 * math.sqrt(m) * eps, 16 * m * EPS)
