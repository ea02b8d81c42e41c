"""Jacobians whose Gramians are hard on a solver: `FAMILIES[name](m, seed)`, [m, n] in float64."""

import math

import torch
from torch import Tensor


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _rand(g: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=g, dtype=torch.float64)


def vandermonde(m: int, seed: int) -> Tensor:
    """Polynomial features of points on a line, and residuals of any sign."""
    g = _generator(seed)
    x = (2 * _rand(g, m) - 1).sort().values
    return torch.vander(x, 30, increasing=True) * _randn(g, m)[:, None]


def fourier(m: int, seed: int) -> Tensor:
    """Waves over a part of their period."""
    g = _generator(seed)
    k = torch.arange(1, 16, dtype=torch.float64)
    phase = 0.2 * math.pi * _rand(g, m, 1).sort(0).values * k
    return torch.cat([torch.ones(m, 1), torch.cos(phase) / k, torch.sin(phase) / k], 1) * _randn(g, m)[:, None]


def kahan(m: int, seed: int) -> Tensor:
    """A triangle that is close to singular though no pivot is small."""
    g = _generator(seed)
    c = 0.285 + 0.3 * float(_rand(g, 1))
    powers = (1 - c * c) ** (torch.arange(m, dtype=torch.float64) / 2)
    J = powers[:, None] * (torch.eye(m).double() - c * torch.triu(torch.ones(m, m).double(), 1))
    return (J.mT if seed % 2 else J) * _randn(g, m).sign()[:, None]


def hilbert(m: int, seed: int) -> Tensor:
    """Hilbert's matrix with rows of any length and sign."""
    i = torch.arange(m, dtype=torch.float64)
    return 1 / (i[:, None] + i + 1) * _randn(_generator(seed), m)[:, None]


def cancelling(m: int, seed: int) -> Tensor:
    """Gradients along one line, back and forth, but for 1e-4 of their length."""
    g = _generator(seed)
    sign = (1 - 2 * (torch.arange(m) % 2)).double()[:, None]
    return sign * _randn(g, 1, max(m, 3)) + 1e-4 * _randn(g, m, max(m, 3))


def scaled(m: int, seed: int) -> Tensor:
    """Conflicting gradients whose lengths are up to twelve orders apart."""
    g = _generator(seed)
    J = _randn(g, m, m + 1)
    return (J - 0.9 * J.mean(0)) * 10 ** (12 * _rand(g, m, 1) - 6)


def low_rank(m: int, seed: int) -> Tensor:
    """A third as many dimensions as gradients."""
    return _randn(_generator(seed), m, m // 3 + 1)


def stationary(m: int, seed: int) -> Tensor:
    """Gradients of sum zero."""
    J = _randn(_generator(seed), m, m + 2)
    return J - J.mean(0)


FAMILIES = {f.__name__: f for f in (vandermonde, fourier, kahan, hilbert, cancelling, scaled, low_rank, stationary)}
