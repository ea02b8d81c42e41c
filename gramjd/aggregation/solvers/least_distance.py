"""The vector nearest to zero that satisfies linear inequalities, in Gramian form."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation.solvers.dual_cone import dual_cone
from gramjd.aggregation.solvers.spectral import pseudo_inverse_times

_ROUNDS = 10


def least_distance(C: Tensor, b: Tensor, eps: float) -> Tensor | None:
    """`mu >= 0` [r] of the shortest `x = sum_j mu_j u_j` with `u_j . x >= b_j` for all j; None if there is no such x.

    Give each unit vector the coordinate `b_j` on top, and take the vector of the cone over `(u_j, b_j)` nearest to the
    unit vector along that coordinate: what is left of the latter is along `(-x, 1)`, and nothing is left exactly when
    the inequalities contradict each other. That nearest vector is a problem in the dual cone.

    Args:
        C: [r, r], the products `u_i . u_j` in float64, positive semi-definite.
        b: [r], of any sign.
        eps: the rounding of the entries of C. A shortest x longer than `max b / sqrt(max(4 eps, 1e-9))` counts as none.

    Source: Lawson and Hanson, Solving least squares problems (1974), chapter 23, problem LDP.

    >>> import torch
    >>> least_distance(torch.eye(2, dtype=torch.float64), torch.tensor([2.0, -1.0], dtype=torch.float64), 1e-16)
    tensor([2., 0.], dtype=torch.float64)
    """
    unit = b.amax() if len(b) else b.new_zeros(())
    if not bool(unit > 0):
        return torch.zeros_like(b)
    h = b / unit
    H = torch.zeros(len(b) + 1, len(b) + 1, dtype=b.dtype, device=b.device)
    H[0, 0] = 1
    H[0, 1:] = H[1:, 0] = -h
    H[1:, 1:] = C + torch.outer(h, h)
    first = torch.zeros(1, len(H), dtype=b.dtype, device=b.device)
    first[0, 0] = 1
    v = dual_cone(H, first)[0]
    left = v[0] - h @ v[1:]
    least = max(4 * eps, 1e-9)
    if not bool(left > least):
        return None
    mu = _polished(C, b, v[1:] * (unit / left), eps)
    # What was left was rounding, if what was found does not satisfy the inequalities.
    return mu if bool((b - C @ mu).amax() <= (1e-7 + 8 * eps / least**0.5) * unit) else None


def _polished(C: Tensor, b: Tensor, mu: Tensor, eps: float) -> Tensor:
    """`mu` solved for again on the inequalities that bind, without the detour and with another look at which do."""
    binding = mu > 1e-9 * mu.amax()
    best, least = mu, _error(C, b, mu)
    for _ in range(_ROUNDS):
        at = binding.nonzero()[:, 0]
        exact = torch.zeros_like(mu)
        exact[at] = pseudo_inverse_times(C[at][:, at], b[at], eps)
        error = _error(C, b, exact)
        if error < least:
            best, least = exact.clamp_min(0), error
        wrong = torch.where(binding, exact < 0, C @ exact < b - 1e-14 * b.abs().amax())
        if not bool(wrong.any()):
            break
        binding = binding ^ wrong
    return best


def _error(C: Tensor, b: Tensor, mu: Tensor) -> float:
    """How far `mu` is from `mu >= 0`, `C mu >= b` and one of the two with equality, in the worst entry."""
    return float(torch.minimum(mu, C @ mu - b).abs().amax())
