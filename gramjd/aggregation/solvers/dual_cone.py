"""Projections of combinations of gradients onto the dual cone of all gradients, in Gramian form.

`argmin {v^T G v : v >= u}` for many u that share one G, by one of two methods. `adaptive`, for a CPU: up to 64 regular
gradients are left to `small`. Of more, splitting guesses which constraints bind (a matrix product per iteration, for
all rows together), and pivoting makes that exact. Least squares on a factor of the cosines do the rows that are left
over, and all where the cosines are close to singular; an answer has passed the
optimality test, or an error is raised. `fixed`, for other devices: the interior-point method alone, without a look at
any value, so that the host never waits for the device; it cannot raise, and answers NaN to what is no Gramian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation.solvers import small
from gramjd.aggregation.solvers.interior import interior, optimality_error
from gramjd.aggregation.solvers.nonnegative import nonnegative, one_by_one, root
from gramjd.aggregation.solvers.pivoting import pivot
from gramjd.aggregation.solvers.rounding import EPS, KNOWN, residual, room
from gramjd.aggregation.solvers.scaling import Cosines, cosines, cosines_unseen
from gramjd.aggregation.solvers.splitting import guess, rough
from gramjd.aggregation.solvers.threads import one_thread_if_small
from gramjd.errors import AggregatorError

_ACCURACY = 1e-9
_PROXIMAL = (1e-3, 1e-5, 1e-7, 1e-8, 1e-8)
_SMOOTH = 0.5  # a geometric mean of the eigenvalues from which on conjugate gradients are quick
_ROUGH = 1e-2  # the least tol that such iterations reach in less time than the exact answer takes
_LOW = 3  # a rank below this part of m is low
_FEW = 4  # up to here the signs of V C are as good a guess as it takes


def dual_cone(G: Tensor, U: Tensor, tol: float | None = None, method: str | None = None, ridge: float = 0.0) -> Tensor:
    """`w in argmin {v^T G v : v >= u}` for each row u of `U`; `J^T w` is then the projection of `J^T u`.

    With `tol=None` every w is exact, as `gramjd.aggregation.solvers` defines it (from `fixed`, as it says there of
    other devices); `w >= u` holds without any error. `tol` asks for an update within about `tol a` only, with
    `a = max_j u_j |g_j|`; `w >= u` still holds without error. A G that is indefinite by rounding is replaced by a
    neighbour, as far away as it is from semi-definite.
    For a singular G the minimiser is not unique (though `J^T w` is): one of them is returned.

    Args:
        G: [m, m], a Gramian; rounding may have left it slightly indefinite.
        U: [r, m], nonnegative. UPGrad's are the rows of the identity.
        tol: None, or a relative accuracy above zero.
        method: `adaptive` or `fixed` (which takes no notice of `tol`); None for what suits the device of `G`.
        ridge: added to the diagonal of `G`, in units of its trace.

    Returns:
        W: [r, m] in float64, on the device of `G`. From `fixed`, NaN if `G` is not what it should be.

    Raises:
        AggregatorError: from `adaptive`, `G` is not finite, symmetric and positive semi-definite up to rounding, or
            (never seen) the accuracy was not reached.

    Source: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization (2024), proposition 1.

    >>> import torch
    >>> dual_cone(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), torch.eye(2))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]], dtype=torch.float64)
    """
    U = U.double()
    if not G.numel():
        return U.clone()
    if (method or ("adaptive" if G.device.type == "cpu" else "fixed")) == "fixed":
        return _fixed(*cosines_unseen(G, ridge), U)
    if G.device.type == "cpu" and (W := small.project(G, U, ridge)) is not None:
        return W
    with one_thread_if_small(len(G), G.device):
        return _adaptive(cosines(G, ridge), U, tol)


def _fixed(C: Tensor, norms: Tensor, U: Tensor) -> Tensor:
    V = U * norms
    size = V.amax(1, keepdim=True)
    V = torch.where(size > 0, V / size, 0.0)
    Q = V @ C
    mu = torch.where((Q >= 0).all(), 0.0, interior(C, Q))
    inverse = torch.where(norms > 0, norms.reciprocal(), 0.0)
    return torch.where(C.isfinite().all(), U + mu * size * inverse, torch.nan)


def _adaptive(cone: Cosines, U: Tensor, tol: float | None) -> Tensor:
    V = U * cone.norms
    size = V.amax(1, keepdim=True)
    V = torch.where(size > 0, V / size, 0.0)
    Q = V @ cone.C
    if bool((Q >= 0).all()):
        return U.clone()
    if cone.factor is not None and (mu := _all_others(cone.factor, V)) is not None:
        return U + _certified(cone, V, Q, mu, tol) * size * cone.inverse_norms
    if cone.factor is None:
        mu = _singular(cone, V, Q)
    else:
        S, reached = _guess(cone, V, Q, tol)
        if reached:
            return U + S.clamp_min(0) * size * cone.inverse_norms
        mu = pivot(cone.C, Q, S > 0, 0.25 * (tol or 0.0), cone.typical > _SMOOTH)
    return U + _certified(cone, V, Q, mu, tol) * size * cone.inverse_norms


def _guess(cone: Cosines, V: Tensor, Q: Tensor, tol: float | None = None) -> tuple[Tensor, bool]:
    """About the multipliers [r, m] where it is positive, and True if that is as near as `tol` asks for."""
    if len(cone.C) <= _FEW:
        return -Q, False
    if tol is not None and tol >= _ROUGH:
        return rough(cone.C, V, cone.penalty, tol)
    return guess(cone.C, V, cone.penalty), False


def _all_others(L: Tensor, V: Tensor) -> Tensor | None:
    """The multipliers [r, m] where each row of `V` has one entry, and all other gradients bind each of them.

    A projection then is orthogonal to all gradients but its own, so that it is the row of the inverse of `C = L L^T`,
    scaled. In strong conflict that is the answer; whether it may be is asked for one row first, which costs next to
    nothing.
    """
    if len(L) < 2 or bool(((V > 0).sum(1) != 1).any()):
        return None
    if float(torch.cholesky_solve(V[0, :, None], L).amin()) < 0:
        return None
    W = V @ torch.cholesky_inverse(L)
    if float(W.amin()) < 0:
        return None
    # V has ones: the own entry of a row is brought to one.
    return W / (W * V).sum(1, keepdim=True) * (1 - V)


def _singular(cone: Cosines, V: Tensor, Q: Tensor) -> Tensor:
    """Multipliers for singular cosines, on a factor with as many columns as their rank.

    Of a low rank there are never many that are positive, so they are found one after the other; a guess that has more
    of them than the rank is worth nothing. Else regular problems nearby come first.
    """
    A, m = root(cone.C), len(cone.C)
    if 2 * A.shape[1] > m and len(V) > 1 and (mu := _balanced(cone.C, A, V)) is not None:
        return mu
    if one_by_one(A, len(V)):
        return nonnegative(A, V @ A, torch.zeros_like(Q), room(m), V.sum(1))
    S, _ = _guess(cone, V, Q)
    if _LOW * A.shape[1] > m:
        return _proximal(cone.C, Q, S)
    mu = S.clamp_min(0)
    mu[(mu > 0).sum(1) > A.shape[1]] = 0
    return nonnegative(A, V @ A, mu, room(m), V.sum(1))


def _balanced(C: Tensor, A: Tensor, V: Tensor) -> Tensor | None:
    """Multipliers where some positive multiples `w` of all gradients cancel, so that nothing but zero suits them all.

    Every projection is zero then, and one w serves all rows: the least multiple of it that reaches `V` [r, m].
    """
    one = torch.ones_like(V[:1])
    w = one + nonnegative(A, one @ A, torch.zeros_like(one), room(len(C)), one.sum(1))
    if float((w @ C).abs().amax()) > 0.5 * KNOWN * len(C) * EPS * float(w.sum()):
        return None
    return ((V / w).amax(1, keepdim=True) * w - V).clamp_min(0)


def _proximal(C: Tensor, Q: Tensor, S: Tensor) -> Tensor:
    """Multipliers for cosines close to singular, by a short sequence of regular problems, each started by the last.

    Each adds `d |mu - mu_before|^2 / 2` to the objective (the proximal point method): its fixed point solves the
    problem as it stands, so unlike a ridge it moves nothing. Large d is easy to pivot on, small d gets there faster.
    """
    eye = torch.eye(len(C), dtype=C.dtype, device=C.device)
    # From zero, not from S: the float32 digits of a guess would stay in what the problem leaves open.
    mu, start, wrong = torch.zeros_like(S), S.clamp_min(0), torch.arange(len(Q), device=Q.device)
    for d in _PROXIMAL:
        mu[wrong] = pivot(C + d * eye, Q[wrong] - d * mu[wrong], start[wrong] > 0, start=start[wrong])
        start = mu
        wrong = wrong[~(optimality_error(C, Q[wrong], mu[wrong]) <= _ACCURACY)]
        if not len(wrong):
            break
    return mu


def _certified(cone: Cosines, V: Tensor, Q: Tensor, mu: Tensor, tol: float | None) -> Tensor:
    """`mu` that is optimal up to rounding; rows that are not are done again, by the method that does not need luck."""
    C, size = cone.C, V.sum(1)
    wrong = (~_passes(C, Q, mu, size, tol)).nonzero()[:, 0]
    if not len(wrong):
        return mu
    A = root(C) if cone.factor is None else cone.factor
    mu[wrong] = nonnegative(A, V[wrong] @ A, mu[wrong], room(len(C)), size[wrong])
    passes = _passes(C, Q[wrong], mu[wrong], size[wrong], tol)
    if not bool(passes.all()):
        off = residual(C, Q[wrong], mu[wrong], size[wrong]).amax() / EPS
        raise AggregatorError(
            f"could not project onto the dual cone: an inner product is off by {float(off):.0f} roundings of its terms,"
            f" allowed are {KNOWN * len(C)}. Please report this Gramian; tol= of UPGrad accepts a rougher answer"
        )
    return mu


def _passes(C: Tensor, Q: Tensor, mu: Tensor, size: Tensor, tol: float | None) -> Tensor:
    """Per row, whether it is optimal up to rounding, or with `tol`, as far as that goes."""
    exact = residual(C, Q, mu, size) <= KNOWN * len(C) * EPS
    return exact if tol is None else exact | (optimality_error(C, Q, mu) <= max(tol, _ACCURACY))
