"""Over-relaxed ADMM on all problems at once: a good guess of which constraints bind, at one product an iteration.

Use it for the guess (pivoting then makes it exact) or, with a tolerance, for the answer. It needs cosines (unit
diagonal); the number of iterations depends on how correlated the gradients are, hardly on m.

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
# Looks at an unchanged sign pattern after which pivoting will be quicker than going on.
_SETTLED = 4


class Splitting:
    """The iteration for `min w C w^T, w >= v`, one problem per row of `V` [r, m], with the penalty `rho`."""

    def __init__(self, C: Tensor, V: Tensor, rho: float) -> None:
        """Factor once, for every iteration and every row."""
        eye = torch.eye(len(C), dtype=C.dtype, device=C.device)
        P = torch.cholesky_inverse(torch.linalg.cholesky_ex(C + rho * eye)[0]) * rho
        self._reflect = _RELAX * (P - 0.5 * eye)
        self._drift = _RELAX * (V @ P - V)
        self.S = self._drift

    def advance(self) -> None:
        """A handful of iterations: as many as are worth one look at the result."""
        S = self.S
        for _ in range(_CHECK_EVERY):
            S = torch.add(self._drift, S, alpha=1 - _RELAX / 2).addmm_(S.abs(), self._reflect)
        self.S = S


def guess_free(C: Tensor, V: Tensor, rho: float, max_iterations: int = 150) -> Tensor:
    """The sign pattern that splitting settles on: `S` [r, m], above zero where a multiplier is thought positive."""
    iteration = Splitting(C, V, rho)
    before = iteration.S > 0
    for _ in range(max_iterations // _CHECK_EVERY):
        iteration.advance()
        now = iteration.S > 0
        if torch.equal(now, before):
            break
        before = now
    return iteration.S


def approximate(C: Tensor, V: Tensor, rho: float, tol: float, max_iterations: int = 150) -> tuple[Tensor, bool]:
    """`S` [r, m] whose positive part is within about `tol` of the multipliers in the norm of C, and whether it is.

    The distance is estimated from the residual `min(mu, y)`, `y = (v + mu) C`, over the root of a typical eigenvalue,
    and from the gap `mu y`, which tells of small eigenvalues. Where that takes too long, exact is the faster way.
    """
    iteration = Splitting(C, V, rho)
    before, settled = iteration.S > 0, 0
    for _ in range(max_iterations // _CHECK_EVERY):
        iteration.advance()
        mu = iteration.S.clamp_min(0)
        y = (V + mu) @ C
        residual = torch.linalg.vector_norm(torch.minimum(mu, y), dim=1).amax() / min(rho, 1.0) ** 0.5
        if float(torch.maximum(residual, (mu * y).sum(1).abs().amax())) <= 0.25 * tol:
            return iteration.S, True
        now = iteration.S > 0
        settled = settled + 1 if torch.equal(now, before) else 0
        if settled == _SETTLED:
            break
        before = now
    return iteration.S, False
