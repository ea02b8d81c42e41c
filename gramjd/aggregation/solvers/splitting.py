"""Peaceman-Rachford splitting on all problems at once: guesses which constraints bind, at one product an iteration.

Use it for the guess; pivoting then makes it exact. It needs cosines (unit diagonal); the number of iterations depends
on how correlated the gradients are, hardly on m. Rounding to float32 makes no difference to a guess.

For `min w C w^T, w >= v` ADMM alternates `w = (z - u) P`, `P = rho (C + rho I)^-1`, with `z = max(v, w' + u)`, where
`w' = 2 w - z` relaxes w as far as it goes. Kept in `S = w' + u - v` alone (multipliers `mu = max(S, 0)`, scaled slacks
`-min(S, 0)`, and `z - u = v + |S|`) an iteration is `S <- |S| (2 P - I) + 2 v (P - I)`.
Source: Boyd et al., Distributed optimization and statistical learning via ADMM (2011), sections 3.4.3 and 5.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHECK_EVERY = 5
_MOST = 150
# Pivoting is the quicker way to correct the guess once no more than this part of the signs still changes.
_SETTLED = 2e-3
_ROUGHLY = 2.0  # times the penalty that is best for a guess of signs: the update itself converges sooner
_DIGITS = 1e-7  # of what float32 sums up
_TOO_MUCH = 7.0
_LOOKS = (1, 2, 3, 5, 7, 9)  # at which of the iterates; a look costs two iterations


def guess(C: Tensor, V: Tensor, rho: float) -> Tensor:
    """`S` [r, m] for `min w C w^T, w >= v`, a problem per row of `V` [r, m]: about the multipliers where positive."""
    before = None
    for S in _iterates(C, V, rho):
        now = S > 0
        if before is not None and int((now != before).sum()) <= _SETTLED * V.numel():
            break
        before = now
    return S.double()


def rough(C: Tensor, V: Tensor, rho: float, tol: float) -> tuple[Tensor, bool]:
    """S as of `guess`, and True if its positive part are multipliers that leave each projection off by about `tol`.

    With `y = (v + mu) C` and Y its entries below zero, the square of the distance to the projection is no more than
    `mu . y + mu* . |Y|`; the multipliers mu* of the projection are taken to sum up to what mu does. The root of that is
    several times too much, so a seventh of it is compared with `tol`.
    """
    C, V = C.float(), V.float()
    S = -(V @ C)
    for k, S in enumerate(_iterates(C, V, _ROUGHLY * rho)):  # the last one is the guess
        if k not in _LOOKS:
            continue
        mu = S.clamp_min(0)
        Y = (V + mu) @ C
        total = mu.sum(1)
        square = (mu * Y).sum(1).clamp_min(0) - Y.amin(1).clamp_max(0) * total
        if bool((square + _DIGITS * (1 + total) <= (_TOO_MUCH * tol) ** 2).all()):
            return S.double(), True
        if k >= _LOOKS[-1]:
            break
    return S.double(), False


def _iterates(C: Tensor, V: Tensor, rho: float) -> Iterator[Tensor]:
    """S, every few iterations; the same memory each time."""
    C, V = C.float(), V.float()
    eye = torch.eye(len(C), dtype=C.dtype, device=C.device)
    P = torch.cholesky_inverse(torch.linalg.cholesky_ex(C + rho * eye)[0]) * rho
    reflect, drift = 2 * P - eye, 2 * (V @ P - V)
    S, size = drift.clone(), torch.empty_like(drift)
    for _ in range(_MOST // _CHECK_EVERY):
        for _ in range(_CHECK_EVERY):
            torch.addmm(drift, torch.abs(S, out=size), reflect, out=S)
        yield S
