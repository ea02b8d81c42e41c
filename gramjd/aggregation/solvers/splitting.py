"""Peaceman-Rachford splitting on all problems at once: guesses which constraints bind, at one product an iteration.

Use it for the guess; pivoting then makes it exact. It needs cosines (unit diagonal); the number of iterations depends
on how correlated the gradients are, hardly on m. Rounding to float32 makes no difference to a guess.

For `min w C w^T, w >= v` ADMM alternates `w = (z - u) P`, `P = rho (C + rho I)^-1`, with `z = max(v, w' + u)`, where
`w' = 2 w - z` relaxes w as far as it goes. Kept in `S = w' + u - v` alone (multipliers `mu = max(S, 0)`, scaled slacks
`-min(S, 0)`, and `z - u = v + |S|`) an iteration is `S <- |S| (2 P - I) + 2 v (P - I)`.
Source: Boyd et al., Distributed optimization and statistical learning via ADMM (2011), sections 3.4.3 and 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHECK_EVERY = 5
_MOST = 150
# Pivoting is the quicker way to correct the guess once no more than this part of the signs still changes.
_SETTLED = 2e-3


def guess(C: Tensor, V: Tensor, rho: float) -> Tensor:
    """`S` [r, m] for `min w C w^T, w >= v`, a problem per row of `V` [r, m]: about the multipliers where positive."""
    C, V = C.float(), V.float()
    eye = torch.eye(len(C), dtype=C.dtype, device=C.device)
    P = torch.cholesky_inverse(torch.linalg.cholesky_ex(C + rho * eye)[0]) * rho
    reflect, drift = 2 * P - eye, 2 * (V @ P - V)
    S, size = drift.clone(), torch.empty_like(drift)
    before = S > 0
    for _ in range(_MOST // _CHECK_EVERY):
        for _ in range(_CHECK_EVERY):
            torch.addmm(drift, torch.abs(S, out=size), reflect, out=S)
        now = S > 0
        if int((now != before).sum()) <= _SETTLED * V.numel():
            break
        before = now
    return S.double()
