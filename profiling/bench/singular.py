"""Gramians close to singular, on which the weights are hard to find, each beside one drawn at random of the same size.

SINGULAR["smooth kernel"](200) -> [200, 200] in float64
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gramjd
from gramjd.aggregation import UPGrad
from gramjd.aggregation.solvers.rounding import EPS, KNOWN
from gramjd.profiling.bench.gramians import drawn, randn
from gramjd.profiling.bench.weightings import InexactError, exact_upgrad
from gramjd.profiling.timing import interleave, spread
from gramjd.text_table import digits

_ROUNDS, _REPEATED = 5, 0.05


def smooth_kernel(m: int) -> Tensor:
    """Gaussians around points of the plane, times residuals of any sign."""
    x, r = randn(m, m, 2), randn(m + 1, m)
    return torch.exp(-0.5 * torch.cdist(x, x).square()) * r[:, None] * r


def polynomials(m: int) -> Tensor:
    """Thirty powers of points of an interval, times residuals of any sign."""
    x = torch.linspace(-1, 1, m, dtype=torch.float64)
    return _gram(torch.vander(x, 30, increasing=True) * randn(m, m, 1))


def few_dimensions(m: int) -> Tensor:
    """An eighth as many dimensions as gradients: only zero suits them all."""
    return _gram(randn(m, m, max(m // 8, 1)))


def balanced(m: int) -> Tensor:
    """Gradients of sum zero, in many dimensions."""
    J = randn(m, m, 4 * m)
    return _gram(J - J.mean(0))


def opposed(m: int) -> Tensor:
    """Gradients along one line, back and forth, but for 1e-4 of their length."""
    sign = (1 - 2 * (torch.arange(m) % 2)).double()[:, None]
    return _gram(sign * randn(m, 1, m) + 1e-4 * randn(m + 1, m, m))


def physics(m: int) -> Tensor:
    """Squared residuals of u'' = -pi^2 sin(pi x) at points, and two of the boundary, early in the training of a u."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)
        net = nn.Sequential(*layers).double()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        _physics_losses(net, m).mean().backward()
        optimizer.step()
    return gramjd.gramian(_physics_losses(net, m), list(net.parameters()))


def _physics_losses(net: nn.Module, m: int) -> Tensor:
    x = torch.linspace(-1, 1, max(m - 2, 1), dtype=torch.float64)[:, None].requires_grad_()
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    ends = net(torch.tensor([[-1.0], [1.0]], dtype=torch.float64)[: m - len(x)])
    return torch.cat([(bend + math.pi**2 * torch.sin(math.pi * x))[:, 0], ends[:, 0]]).square() / 2


def _gram(J: Tensor) -> Tensor:
    return J @ J.mT


SINGULAR: dict[str, Callable[[int], Tensor]] = {
    "smooth kernel": smooth_kernel,
    "polynomials": polynomials,
    "few dimensions": few_dimensions,
    "sum zero": balanced,
    "opposed": opposed,
    "physics": physics,
}


def roundings(G: Tensor, W: Tensor) -> float:
    """How far `G w >= 0`, and 0 where w is larger than it must be, fails for the rows of `W` [m, m].

    In roundings of the terms of `G w` per loss: `gramjd.aggregation.solvers` promises 8 or less.
    """
    n = G.diagonal().sqrt()
    Y = W @ G / n
    off = torch.where(torch.eye(len(G)) < W, Y.abs(), -Y).amax(1) / (W @ n)
    return float(off.amax().clamp_min(0)) / (len(G) * EPS)


def measure(name: str, m: int, seconds: float) -> dict[str, Any]:
    """Median milliseconds of UPGrad there and on `random`, in turns, and the rank up to rounding.

    Raises:
        InexactError: the weights are not exact.
    """
    G, beside, weigh = SINGULAR[name](m), drawn("random", m), UPGrad()
    missed = roundings(G, exact_upgrad(G))
    if not missed <= 2 * KNOWN:
        raise InexactError(f"{name}, m = {m}: optimality is missed by {missed:.0f} roundings, allowed are {2 * KNOWN}")
    steps = {"exact": lambda: weigh(G), "random": lambda: weigh(beside)}
    times = interleave(
        steps, rounds=_ROUNDS, warmup=0, seconds=seconds, at_least=_REPEATED, fewest=1, clock=time.process_time
    )
    found: dict[str, Any] = {of: {"ms": digits(1e3 * spread(taken).median)} for of, taken in times.items()}
    found["exact"]["roundings"] = digits(missed)
    lengths = G.diagonal().clamp_min(1e-300).sqrt()
    rank = int(torch.linalg.matrix_rank(G / torch.outer(lengths, lengths), hermitian=True))
    return {"weighting": "UPGrad", "gradients": name, "m": m, "rank": rank, "contenders": found}
