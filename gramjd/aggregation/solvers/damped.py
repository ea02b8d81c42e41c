"""The linear system of a damped Gauss-Newton step, between samples: `(G + lambda I) w = r`."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation.solvers.rounding import EPS
from gramjd.aggregation.solvers.threads import one_thread_if_small


def solve_damped(H: Tensor, r: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`w = H^-1 r` by one Cholesky factorisation, and whether that is more than rounding.

    Args:
        H: [m, m], `G + lambda I` in float64, m at least 1.
        r: [m], in float64.
        eps: of the dtype that `G` was rounded to.

    Returns:
        w [m], and a tensor of one bool: True if no pivot is so small beside its diagonal entry that it may be all
        rounding, which means that its row depends on those before it. Where it is False, `w` is not to be used.
    """
    with one_thread_if_small(len(H), H.device):
        L, info = torch.linalg.cholesky_ex(H)
        w = torch.cholesky_solve(r[:, None], L)[:, 0]
    pivots = L.diagonal().square() / H.diagonal()
    return w, (info == 0) & (pivots.amin() > max(eps, 4 * len(H) * EPS))
