"""Projections of combinations of gradients onto the dual cone of all gradients, in Gramian form.

`argmin {v^T G v : v >= u}` for many u that share one G. Three stages, each on the rows that the one before left over:
splitting guesses which constraints bind (a matrix product an iteration, for all rows together), pivoting makes that
exact, an active-set method is the backup. An exact answer has passed the optimality test, or an error is raised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation.solvers.active_set import nonnegative_least_squares, root_of
from gramjd.aggregation.solvers.pivoting import FreeSolver, by_cholesky, by_either, pivot
from gramjd.aggregation.solvers.scaling import Cosines, cosines
from gramjd.aggregation.solvers.splitting import approximate, guess_free
from gramjd.aggregation.solvers.threads import one_thread_if_small
from gramjd.errors import AggregatorError

_ACCURACY = 1e-9
_PROXIMAL = (1e-6, 1e-6, 1e-6, 1e-6, 1e-7, 1e-8, 1e-8, 1e-9, 1e-9, 1e-10, 1e-10)
_ROUNDS = 60
# From here on products of all rows with C beat a factorisation for each of them.
_MANY = 48
_FEW = 8


def dual_cone(G: Tensor, U: Tensor, tol: float | None = None) -> Tensor:
    """`w in argmin {v^T G v : v >= u}` for each row u of `U`; `J^T w` is then the projection of `J^T u`.

    With `tol=None` every w is exact to float64: `w >= u` without any error, and, with `a = max_j u_j |g_j|` (which is
    `|J^T u|` for a unit vector), `(G w)_j >= 0` to `1e-9 a |g_j|` and `u^T G w = w^T G w` to `1e-9 a^2`, or to the
    rounding of evaluating them. `tol` asks for an update within about `tol a` only; `w >= u` still holds without
    error. A G that is indefinite by rounding is replaced by a neighbour, as far away as it is from semi-definite.
    For a singular G the minimiser is not unique (though `J^T w` is): one of them is returned.

    Args:
        G: [m, m], a Gramian; rounding may have left it slightly indefinite.
        U: [r, m], nonnegative. UPGrad's are the rows of the identity.
        tol: None, or a relative accuracy above zero.

    Returns:
        W: [r, m] in float64, on the device of `G`.

    Raises:
        AggregatorError: `G` is not finite, symmetric and positive semi-definite up to rounding, or (never seen)
            no stage reached the accuracy.

    Source: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization (2024), proposition 1.

    >>> import torch
    >>> dual_cone(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), torch.eye(2))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]], dtype=torch.float64)
    """
    U = U.double()
    if not G.numel():
        return U.clone()
    with one_thread_if_small(len(G), G.device):
        return _solve(cosines(G), U, tol)


def _solve(cone: Cosines, U: Tensor, tol: float | None) -> Tensor:
    V = U * cone.norms
    size = V.amax(1, keepdim=True)
    V = torch.where(size > 0, V / size, 0.0)
    Q = V @ cone.C
    if bool((Q >= 0).all()):
        return U.clone()
    S, good_enough = -Q, False
    if tol is not None:
        S, good_enough = approximate(cone.C, V, cone.typical, tol)
    elif len(cone.C) > _FEW:
        S = guess_free(cone.C, V, cone.typical)
    mu = S.clamp_min(0) if good_enough else _exact(cone, V, Q, S)
    return U + mu * size * cone.inverse_norms


def _exact(cone: Cosines, V: Tensor, Q: Tensor, start: Tensor) -> Tensor:
    """Multipliers `mu >= 0` [r, m] with `(v + mu) C >= 0` and `mu (v + mu) C = 0` for each row v of `V`."""
    C = cone.C
    solve = by_cholesky if len(C) < _MANY else by_either
    mu = start.clamp_min(0) if cone.singular else pivot(C, Q, start, solve, _ROUNDS)
    wrong = _unsolved(C, Q, mu)
    if len(wrong):
        mu[wrong] = _proximal(C, Q[wrong], mu[wrong], solve)
        wrong = wrong[_unsolved(C, Q[wrong], mu[wrong])]
    if len(wrong):
        mu[wrong] = _by_active_set(C, Q[wrong], V[wrong])
    return mu


def _proximal(C: Tensor, Q: Tensor, mu: Tensor, solve: FreeSolver) -> Tensor:
    """Solve for singular cosines as a short sequence of regular problems, each warm-started by the one before.

    Each adds `d |mu - mu_before|^2 / 2` to the objective (the proximal point method): its fixed point solves the
    problem as it stands, so unlike a ridge it moves nothing. Large d is easy to pivot on, small d gets there faster.
    """
    eye = torch.eye(len(C), dtype=C.dtype, device=C.device)
    center, wrong = mu, torch.arange(len(Q), device=Q.device)
    for d in _PROXIMAL:
        step = pivot(C + d * eye, Q[wrong] - d * center[wrong], center[wrong], solve, _ROUNDS)
        center[wrong] = step
        wrong = wrong[_unsolved(C, Q[wrong], step)]
        if not len(wrong):
            break
    return center


def _by_active_set(C: Tensor, Q: Tensor, V: Tensor) -> Tensor:
    R = root_of(C)
    mu = torch.stack([nonnegative_least_squares(R, -(R @ v)) for v in V.cpu()]).to(C.device)
    worst = float(optimality_error(C, Q, mu).amax())
    if not worst <= 10 * _ACCURACY:
        raise AggregatorError(
            f"could not project onto the dual cone: the optimality residual is {worst:.1e}, allowed is"
            f" {10 * _ACCURACY:.0e}. Compute the Gramian in float64, or pass tol= to accept a rougher answer"
        )
    return mu


def _unsolved(C: Tensor, Q: Tensor, mu: Tensor) -> Tensor:
    """The indices of the rows that do not pass the optimality test."""
    return (~(optimality_error(C, Q, mu) <= _ACCURACY)).nonzero()[:, 0]


def optimality_error(C: Tensor, Q: Tensor, mu: Tensor) -> Tensor:
    """Per row [r], how far `y = q + mu C` and `mu` are from `y >= 0, mu y = 0`, less what rounding must leave."""
    y = torch.addmm(Q, mu, C)
    total = 1 + mu.sum(1)
    rounding = 4 * torch.finfo(C.dtype).eps * total
    infeasible = -y.amin(1) - rounding
    gap = (mu * y).sum(1).abs() - rounding * total
    return torch.maximum(infeasible, gap)
