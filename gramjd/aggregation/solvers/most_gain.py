"""The largest least gain within a radius, by exchange of what binds: the core of CAGrad.

`max t` over `C x + q >= t d, |R x| <= c`, for cosines `C = R^T R`. On the set of gradients that bind, the rest of x
being zero, it has a closed form; each round moves all entries to the other side that contradict the set they are in.
That mostly ends after a few rounds, and what it ends with is optimal. Where it does not, the gain t is bracketed: the
shortest x that reaches t is a nonnegative least squares problem, and its length grows with t. Where values may not be
looked at, a cone program finds the set first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation.solvers.nonnegative import nonnegative, root
from gramjd.aggregation.solvers.rounding import EPS, KNOWN, room
from gramjd.aggregation.solvers.second_order import least_with_length

_ROUNDS = 12
_MORE_ROUNDS = 4  # after the cone program
_SLACK = 1e-12
_LENGTH = 1e-13  # to which the radius is reached
_HALVINGS = 100
_SMALLEST = 1e-300
_DAMPING = 1e-14  # on the diagonal of cosines between unit vectors: it makes no difference but to singular ones


def most_gain(C: Tensor, q: Tensor, d: Tensor, c: float, look: bool, size: Tensor) -> Tensor:
    """The `x >= 0` [m] with `|R x| = c` that maximises `min (C x + q) / d`; any such x where nothing depends on it.

    Args:
        C: [m, m] in float64, cosines; for a gradient of zero, of which x is to be zero, 0 beside the diagonal.
        q: [m], `C v` for an x to be added to v; for a gradient of zero more than `1 + c` times `|R v|`.
        d: [m], above zero and at most 1.
        c: above zero.
        look: whether values may be looked at.
        size: [], of the terms of q.

    >>> import torch
    >>> C, q = torch.eye(2).double(), torch.tensor([0.0, 1.0]).double()
    >>> most_gain(C, q, torch.ones(2).double(), 0.5, look=True, size=q.sum())
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    if look:
        x = _by_exchange(C, q, d, c, size)
        return _by_bracket(C, q, d, c, size) if x is None else x
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


def _by_exchange(C: Tensor, q: Tensor, d: Tensor, c: float, size: Tensor) -> Tensor | None:
    """x [m], from the guess that what is below the most that the gain can be binds; None if the rounds did not end."""
    free = q / d < ((q + c) / d).amin()
    for _ in range(_ROUNDS):
        x, slack, wrong = _round(C, q, d, c, free)
        if not bool(wrong.any()):
            noise = KNOWN * len(C) * EPS * (size + x.abs().sum())
            slack, x = slack + C @ (x.clamp_min(0) - x), x.clamp_min(0)
            off = torch.where(free, slack.abs(), -slack).amax()
            long = (x @ C @ x - c * c).abs() - noise * x.sum()
            return x if bool((off <= noise) & (long <= _LENGTH * c * c)) else None
        free = free ^ wrong
    return None


def _by_bracket(C: Tensor, q: Tensor, d: Tensor, c: float, size: Tensor) -> Tensor:
    """x [m]: the gain t is bracketed by halving and by secants until the x on both sides are the same up to rounding.

    `x(t)`, the shortest with `C x + q >= t d`, comes from the vector of the cone over the rows `(a_j, b_j)`,
    `b = (t d - q) / c`, that is nearest to the unit vector along b: `s` of the latter is left, and
    `|R x / c|^2 = (1 - s) / s`. So s falls with t, and is 1/2 where x is as long as it may be.
    Source: Lawson and Hanson, Solving least squares problems (1974), chapter 23, problem LDP.
    """
    A, m = root(C), len(C)
    scaled = q.new_zeros(1, m)

    def shortest(t: float) -> tuple[float, Tensor]:
        nonlocal scaled
        b = (t * d - q) / c
        length = (1 + b * b).sqrt()
        R = torch.cat([A, b[:, None]], 1) / length[:, None]
        target = torch.zeros_like(R[:1])
        target[0, -1] = -1
        scaled = nonnegative(R, target, scaled, room(m), 1 + size[None] / c)
        x = scaled[0] / length
        left = 1 - float(x @ b)
        return left, x * (c / max(left, _SMALLEST))

    low, high = float((q / d).amin()), float(((q + c) / d).amin())
    below, above = (1.0, torch.zeros_like(q)), shortest(high)
    for k in range(_HALVINGS):
        share = 0.5 if k % 3 == 2 else (below[0] - 0.5) / max(below[0] - above[0], _SMALLEST)
        middle = low + min(max(share, 1e-3), 1 - 1e-3) * (high - low)
        if not low < middle < high or abs(below[0] - 0.5) <= _LENGTH:
            break
        found = shortest(middle)
        if found[0] >= 0.5:
            low, below = middle, found
        else:
            high, above = middle, found
    return _of_length(C, below[1], above[1], c)


def _of_length(C: Tensor, x: Tensor, longer: Tensor, c: float) -> Tensor:
    """The point between x and the longer one with `|R .| = c`."""
    step = longer - x
    a, b, rest = step @ C @ step, x @ C @ step, x @ C @ x - c * c
    share = (-rest).clamp_min(0) / (b + (b * b - a * rest).clamp_min(0).sqrt()).clamp_min(_SMALLEST)
    return x + share.clamp_max(1.0) * step


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
