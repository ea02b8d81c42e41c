"""Over-relaxed ADMM on all problems at once: a good guess of which constraints bind, at one product an iteration.

Use it for the guess; pivoting then makes it exact. It needs cosines (unit diagonal); the number of iterations depends
on how correlated the gradients are, hardly on m. Rounding to float32 makes no difference to a guess.

For `min w C w^T, w >= v` ADMM alternates `w = (z - u) P`, `P = rho (C + rho I)^-1`, with `z = max(v, w' + u)`. Kept in
`S = w' + u - v` alone (multipliers `mu = max(S, 0)`, scaled slacks `-min(S, 0)`, and `z - u = v + |S|`) an iteration
with over-relaxation a is `S <- |S| (a P - a/2 I) + (1 - a/2) S + a v (P - I)`.
Source: Boyd et al., Distributed optimization and statistical learning via ADMM (2011), sections 3.4.3 and 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RELAX = 1.8
_CHECK_EVERY = 5
_MOST = 150
# Pivoting is the quicker way to correct the guess once no more than this part of the rows still changes.
_SETTLED = 0.1


def guess(C: Tensor, V: Tensor, rho: float) -> Tensor:
    """`S` [r, m] for `min w C w^T, w >= v`, a problem per row of `V` [r, m]: about the multipliers where positive."""
    eye = torch.eye(len(C), dtype=C.dtype, device=C.device)
    P = torch.cholesky_inverse(torch.linalg.cholesky_ex(C + rho * eye)[0]) * rho
    reflect = (_RELAX * (P - 0.5 * eye)).float()
    drift = (_RELAX * (V @ P - V)).float()
    S = drift
    before = S > 0
    for _ in range(_MOST // _CHECK_EVERY):
        for _ in range(_CHECK_EVERY):
            S = torch.add(drift, S, alpha=1 - _RELAX / 2).addmm_(S.abs(), reflect)
        now = S > 0
        if int((now != before).any(1).sum()) <= _SETTLED * len(V):
            break
        before = now
    return S.double()
