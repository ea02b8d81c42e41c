"""The largest least gain within a radius, by exchange of what binds: the core of CAGrad.

`max t` over `C x + q >= t d, |R x| <= c`, for cosines `C = R^T R`. On the set of gradients that bind, the rest of x
being zero, it has a closed form; each round moves all entries to the other side that contradict the set they are in.
That mostly ends after a few rounds, and what it ends with is optimal. Where it does not, and where values may not be
looked at, a cone program finds the set first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation.solvers.second_order import least_with_length

_ROUNDS = 12
_MORE_ROUNDS = 4  # after the cone program
_SLACK = 1e-12
_ACCURACY = 1e-10
_DAMPING = 1e-14  # on the diagonal of cosines between unit vectors: it makes no difference but to singular ones


def most_gain(C: Tensor, q: Tensor, d: Tensor, c: float, look: bool) -> Tensor:
    """The `x >= 0` [m] with `|R x| = c` that maximises `min (C x + q) / d`; any such x where nothing depends on it.

    Args:
        C: [m, m] in float64, cosines; for a gradient of zero, of which x is to be zero, 0 beside the diagonal.
        q: [m], `C v` for an x to be added to v; for a gradient of zero more than `1 + c` times `|R v|`.
        d: [m], above zero and at most 1.
        c: above zero.
        look: whether values may be looked at.

    >>> import torch
    >>> C, q = torch.eye(2).double(), torch.tensor([0.0, 1.0]).double()
    >>> most_gain(C, q, torch.ones(2).double(), 0.5, look=True)
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    if look:
        x = _by_exchange(C, q, d, c)
        if x is not None:
            return x
    s, free = least_with_length(C, q, d, c, look)
    found = [s]
    for _ in range(_MORE_ROUNDS):
        x, _, wrong = _round(C, q, d, c, free)
        found.append(x.clamp_min(0))
        free = free ^ wrong
    X = torch.stack(found)
    X = X * (c / ((X @ C) * X).sum(1, keepdim=True).sqrt())
    gains = ((q + X @ C) / d).amin(1).nan_to_num(nan=-torch.inf)
    return X.index_select(0, gains.argmax(0, keepdim=True))[0]


def _by_exchange(C: Tensor, q: Tensor, d: Tensor, c: float) -> Tensor | None:
    """x [m], from the guess that what is below the most that the gain can be binds; None if the rounds did not end."""
    free = q / d < ((q + c) / d).amin()
    for _ in range(_ROUNDS):
        x, slack, wrong = _round(C, q, d, c, free)
        if not bool(wrong.any()):
            missed = torch.where(free, slack.abs(), 0.0).amax() + (x @ C @ x / (c * c) - 1).abs()
            return x.clamp_min(0) if bool(missed <= _ACCURACY) else None
        free = free ^ wrong
    return None


def _round(C: Tensor, q: Tensor, d: Tensor, c: float, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [m] on the set `free`, `C x + q - t d` [m], and the entries [m] that are on the wrong side."""
    x, t = _on_support(C, q, d, c, free)
    slack = C @ x + q - t * d
    return x, slack, ~torch.where(free, x >= -_SLACK * x.abs().amax(), slack >= -_SLACK * (1 + c))


def _on_support(C: Tensor, q: Tensor, d: Tensor, c: float, free: Tensor) -> tuple[Tensor, Tensor]:
    """`x = t p - r` [m], zero but on `free`, and t [], with `C x + q = t d` on it and `|R x| = c`, if it can be."""
    M = torch.where(free[:, None] & free, C, 0.0)
    M.diagonal().add_(torch.where(free, _DAMPING, 1.0))
    L, _ = torch.linalg.cholesky_ex(M)
    p, r = torch.cholesky_solve(torch.stack([d, q], 1) * free[:, None], L).unbind(1)
    square, product, rest = p @ C @ p, p @ C @ r, r @ C @ r - c * c
    t = (product + (product * product - square * rest).clamp_min(0).sqrt()) / square
    return t * p - r, t
