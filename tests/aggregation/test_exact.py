"""Exact up to rounding, as `gramjd.aggregation.solvers` promises, on Gramians that are close to singular."""

from fractions import Fraction

import pytest
import torch

from gramjd.aggregation import MGDA, CAGrad, DualProj, FairGrad, NashMTL, UPGrad
from gramjd.aggregation.solvers import dual_cone
from gramjd.aggregation.solvers.rounding import EPS, KNOWN

from .families import FAMILIES
from .rationals import (
    Matrix,
    Vector,
    determined,
    distance,
    dot,
    exact,
    nearest,
    projection,
    projection_from,
    times,
)

SEEDS = 5
family = pytest.mark.parametrize("name", FAMILIES)


def gramian(name, m, seed):
    J = FAMILIES[name](m, seed)
    return J @ J.mT


def lengths(G):
    return G.diagonal().sqrt().tolist()


def off(G: Matrix, w: Vector, n: list[float], slack: Vector) -> float:
    """How far `G w >= 0`, and 0 where `slack` is positive, is missed: in roundings of the terms, per loss."""
    terms = sum(float(x) * l for x, l in zip(w, n, strict=True))
    missed = [abs(y) if s > 0 else -y for y, s in zip(times(G, w), slack, strict=True)]
    return max(float(x) / (l * terms) for x, l in zip(missed, n, strict=True)) / (EPS * len(n))


def backward_error(G, U, W):
    """The worst of the rows; each keeps its bound `w >= u` without any error."""
    E, n, worst = exact(G), lengths(G), 0.0
    for u, w in zip(exact(U), exact(W), strict=True):
        slack = [a - b for a, b in zip(w, u, strict=True)]
        assert min(slack) >= 0
        worst = max(worst, off(E, w, n, slack))
    return worst


def check_projections(name, m, seed, rows=None):
    G, eye = gramian(name, m, seed), torch.eye(m, dtype=torch.float64)
    W = dual_cone(G, eye)
    some = slice(None) if rows is None else slice(None, None, max(m // rows, 1))
    assert backward_error(G, eye[some], W[some]) <= 2 * KNOWN
    torch.testing.assert_close(UPGrad()(G), W.mean(0))
    u = torch.full((1, m), 1 / m, dtype=torch.float64)
    assert backward_error(G, u, DualProj()(G)[None]) <= 2 * KNOWN


def forward_error(G: Matrix, w: Vector, best: Vector, again, n: list[float]) -> None:
    """The update is as near to the exact one as rounding G lets it be."""
    noise = EPS * sum(float(x) * l for x, l in zip(best, n, strict=True))
    known = determined(G, best, again, EPS)
    assert distance(G, w, best) <= KNOWN * len(n) * (known + noise)


@family
@pytest.mark.parametrize("m", [2, 3, 4, 9, 14, 24])
def test_projections_are_those_of_a_gramian_that_rounds_to_this_one(name, m):
    for seed in range(SEEDS if m < 24 else 2):
        check_projections(name, m, seed, rows=8)


@family
def test_projections_of_many(name):
    G, eye = gramian(name, 120, 0), torch.eye(120, dtype=torch.float64)
    W = dual_cone(G, eye[:30])
    assert backward_error(G, eye[:3], W[:3]) <= 2 * KNOWN


@family
@pytest.mark.parametrize("m", [2, 3, 4])
def test_projections_are_as_near_as_rounding_lets_them_be(name, m):
    """Against rational arithmetic, with all sets of what can bind tried out."""
    compared = 0
    for seed in range(SEEDS):
        G = gramian(name, m, seed)
        E, W = exact(G), exact(dual_cone(G, torch.eye(m, dtype=torch.float64)))
        for i in range(m):
            u = [Fraction(int(j == i)) for j in range(m)]
            if (best := projection(E, u)) is not None:
                forward_error(E, W[i], best, lambda H, u=u: projection(H, u), lengths(G))
                compared += 1
    assert compared or name in ("low_rank", "stationary")


@pytest.mark.parametrize("name", ["kahan", "cancelling", "scaled"])
@pytest.mark.parametrize("m", [6, 9])
def test_projections_of_more_losses_are_as_near(name, m):
    """Against rational arithmetic, from the set that was found to bind."""
    for seed in range(2):
        G = gramian(name, m, seed)
        W = dual_cone(G, torch.eye(m, dtype=torch.float64))
        for i in range(0, m, 4):
            u = [Fraction(int(j == i)) for j in range(m)]
            free = (W[i] > torch.eye(m)[i]).tolist()
            best = projection_from(exact(G), u, free)
            assert best is not None
            forward_error(exact(G), exact(W[i]), best, lambda H, u=u, f=free: projection_from(H, u, f), lengths(G))


@family
@pytest.mark.parametrize("m", [2, 3, 4, 12])
def test_mgda(name, m):
    """`G w >= w^T G w`, with equality where w is positive; and as near as rounding lets it be."""
    for seed in range(SEEDS):
        G = gramian(name, m, seed)
        E, w, n = exact(G), exact(MGDA()(G)), lengths(G)
        level = dot(w, times(E, w))
        missed = [abs(y - level) if x > 0 else level - y for y, x in zip(times(E, w), w, strict=True)]
        terms = sum(float(x) * l for x, l in zip(w, n, strict=True))
        assert all(float(x) <= 4 * KNOWN * m * EPS * terms * l for x, l in zip(missed, n, strict=True))
        if m <= 4 and (best := nearest(E)) is not None:
            forward_error(E, w, best, nearest, n)


@family
@pytest.mark.parametrize("m", [2, 3, 4, 12])
@pytest.mark.parametrize("c", [0.5, 1.0, 3.0])
def test_cagrad(name, m, c):
    """In the ball, and no point of it does more for the worst-off loss: by duality."""
    for seed in range(SEEDS):
        G = gramian(name, m, seed)
        E, n = exact(G), lengths(G)
        w = exact(CAGrad(c)(G))
        x = [a - Fraction(1, m) for a in w]
        radius = c * max(float(sum(map(sum, E))), 0.0) ** 0.5 / m
        length, terms = (
            max(float(dot(x, times(E, x))), 0.0) ** 0.5,
            sum(float(a) * l for a, l in zip(w, n, strict=True)),
        )
        noise = KNOWN * m * EPS * terms
        assert min(x) >= -Fraction(EPS)
        assert length**2 <= radius**2 + noise * terms
        gains = times(E, w)
        if c >= 1:
            assert all(float(y) >= -2 * noise * l for y, l in zip(gains, n, strict=True))
        at_rest = length < radius * (1 - 1e-6) or sum(x) == 0
        if not at_rest and min(gains) > 10 * noise * min(n):
            bound = sum(float(y) for y in map(lambda a, b: a * b, x, [sum(row) / m for row in E])) + radius * length
            assert bound / float(sum(x)) - float(min(gains)) <= 4 * noise * max(n)


@family
@pytest.mark.parametrize("weighting", [NashMTL(), FairGrad(0.5), FairGrad(2.0)], ids=repr)
def test_bargains(name, weighting):
    """`G w = w^-p` up to the rounding of the terms of `G w`; or no weights, where gradients balance up to rounding."""
    p = 1 / getattr(weighting, "_alpha", 1.0)
    for m in (2, 3, 4, 12):
        for seed in range(SEEDS):
            G = gramian(name, m, seed)
            w, n = weighting(G), G.diagonal().sqrt()
            if not bool(w.any()):
                assert distance(exact(G), exact(MGDA()(G)), [Fraction(0)] * m) <= 1e-4 * float(n.min())
                continue
            gains = torch.tensor([float(y) for y in times(exact(G), exact(w))], dtype=torch.float64)
            noise = KNOWN * m * EPS * (w @ n) * n
            assert ((gains - w**-p).abs() <= 1e-9 * w**-p + noise).all()


@pytest.mark.slow
@family
@pytest.mark.parametrize("m", [5, 14, 24, 40])
def test_projections_thoroughly(name, m):
    for seed in range(40 if m < 40 else 8):
        check_projections(name, m, 1000 + seed, rows=12)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_two_hundred_thoroughly(name):
    for seed in range(4):
        check_projections(name, 200, seed, rows=2)
