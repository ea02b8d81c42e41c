"""MGDA, CAGrad and DualProj against enumeration, duality and quadprog."""

import itertools
import math

import numpy as np
import pytest
import quadprog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from gramjd.aggregation import MGDA, CAGrad, DualProj, Mean

from .optimality import KINDS, assert_optimal, jacobian, jacobians


@st.composite
def small_jacobians(draw, kinds=KINDS, most=6):
    """Up to `most` rows of any kind, their lengths up to 1e3 apart."""
    m = draw(st.integers(1, most))
    J = jacobian(draw(st.sampled_from(kinds)), m, draw(st.integers(0, 10**6)))
    exponents = draw(st.lists(st.floats(-1.5, 1.5), min_size=m, max_size=m))
    return J * 10.0 ** torch.tensor(exponents, dtype=torch.float64)[:, None]


def nearest_by_enumeration(J):
    """The point of the convex hull of the rows nearest to zero: least squares on every set of rows, in numpy."""
    J, best = J.numpy(), None
    for k in range(1, len(J) + 1):
        for chosen in map(list, itertools.combinations(range(len(J)), k)):
            # The affine hull of the chosen rows, from its first: least squares has no trouble with low rank.
            base, edges = J[chosen[0]], (J[chosen[1:]] - J[chosen[0]]).T
            rest = np.linalg.lstsq(edges, -base, rcond=None)[0] if k > 1 else np.zeros(0)
            weights = np.concatenate([[1 - rest.sum()], rest])
            if weights.min() >= -1e-12:
                point = base + edges @ rest if k > 1 else base
                best = point if best is None or point @ point < best @ best else best
    return torch.from_numpy(best)


@settings(derandomize=True, deadline=None, max_examples=250)
@given(small_jacobians())
def test_mgda_is_the_nearest_point_of_the_hull(J):
    w, expected = MGDA()(J @ J.mT), nearest_by_enumeration(J)
    # A Gramian knows the length of a sum to the root of eps only, in units of its terms.
    known = 2e-8 * (w @ J.norm(dim=1))
    assert torch.linalg.vector_norm(w @ J - expected) <= 1e-7 * torch.linalg.vector_norm(expected) + known


@settings(derandomize=True, deadline=None, max_examples=150)
@given(jacobians())
def test_mgda_passes_its_optimality_test(J):
    if not len(J):
        return
    w, norms = MGDA()(J @ J.mT), J.norm(dim=1)
    assert (w >= 0).all()
    assert w.sum().item() == pytest.approx(1, rel=1e-12)
    update = J.mT @ w
    lowest = (J @ update - update @ update) / norms.clamp_min(1e-280)
    # Gradients that cancel leave of the update what rounding leaves of its terms.
    assert (lowest[norms > 0] >= -1e-9 * norms.min() - 1e-15 * (w @ norms)).all()


@pytest.mark.parametrize("a", [0.0, 0.25, 0.5, 1.0, 1.5, 10.0])
def test_mgda_ignores_the_longer_gradients(a):
    J = torch.tensor([[2.0, 0.0], [0.0, 2.0], [a, a]], dtype=torch.float64)
    expected = torch.full((2,), min(a, 1.0), dtype=torch.float64)
    torch.testing.assert_close(MGDA().aggregate(J), expected, rtol=1e-12, atol=1e-12)


def test_mgda_gives_all_weight_to_gradients_of_zero():
    w = MGDA()(torch.diag(torch.tensor([1.0, 0.0, 2.0, 0.0])))
    assert w.tolist() == [0.0, 0.5, 0.0, 0.5]


@pytest.mark.parametrize("ratio", [1e-8, 1e8])
def test_mgda_with_gradients_of_very_different_lengths(ratio):
    J = torch.tensor([[1.0, 0.0], [0.0, ratio]], dtype=torch.float64)
    w = torch.tensor([ratio**2, 1.0], dtype=torch.float64) / (1 + ratio**2)
    torch.testing.assert_close(MGDA()(J @ J.mT), w, rtol=1e-9, atol=0)


def gap(J, w, c):
    """How far `J^T w` is from best, by duality: `min_s s . J g + c |g| |J^T s| >= min_i g_i . y` over the ball."""
    m, g = len(J), J.mean(0)
    y, t = J.mT @ w, m * w - 1
    radius = c * torch.linalg.vector_norm(g)
    assert (t >= 0).all()
    assert torch.linalg.vector_norm(y - g) <= radius * (1 + 1e-9)
    s = t / t.sum()
    bound = s @ (J @ g) + radius * torch.linalg.vector_norm(J.mT @ s)
    return float(bound - (J @ y).min()), float(torch.linalg.vector_norm(g) * J.norm(dim=1).min())


@settings(derandomize=True, deadline=None, max_examples=200)
@given(small_jacobians(["full", "wide", "half space"], most=12), st.sampled_from([0.1, 0.4, 0.9, 1.0, 3.0]))
def test_cagrad_is_optimal_by_duality(J, c):
    distance, unit = gap(J, CAGrad(c)(J @ J.mT), c)
    assert abs(distance) <= 1e-8 * unit


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("c", [0.3, 0.8, 2.0])
def test_cagrad_agrees_with_a_solver_on_its_simplex(seed, c):
    J = jacobian("wide", 4, seed)
    J = J - 0.7 * J.mean(0)
    G, m = (J @ J.mT).numpy(), 4
    b = c * math.sqrt(G.sum())
    result = minimize(
        lambda s: G.sum(1) @ s + b * math.sqrt(s @ G @ s),
        np.full(m, 1 / m),
        jac=lambda s: G.sum(1) + b * (G @ s) / math.sqrt(s @ G @ s),
        bounds=[(0, 1)] * m,
        constraints={"type": "eq", "fun": lambda s: s.sum() - 1, "jac": lambda s: np.ones(m)},
        options={"ftol": 1e-15, "maxiter": 500},
        method="SLSQP",
    )
    s = result.x
    expected = torch.from_numpy((1 + b / math.sqrt(s @ G @ s) * s) / m)
    torch.testing.assert_close(CAGrad(c)(J @ J.mT), expected, rtol=1e-4, atol=1e-5)
    mine = (m * CAGrad(c)(J @ J.mT) - 1).numpy()
    mine = mine / mine.sum()
    assert G.sum(1) @ mine + b * math.sqrt(mine @ G @ mine) <= result.fun * (1 + 1e-7 * np.sign(result.fun))


@pytest.mark.parametrize("kind", KINDS)
def test_cagrad_with_a_large_radius_at_a_stationary_point_is_dualproj(kind):
    J = torch.cat([jacobian(kind, 5, 1), -jacobian(kind, 5, 1).sum(0, keepdim=True) + 0.3])
    J = torch.cat([J, -J.sum(0, keepdim=True) * 0.3])
    torch.testing.assert_close(
        CAGrad(1.0).aggregate(J), DualProj().aggregate(J), rtol=1e-6, atol=1e-7 * float(J.norm(dim=1).max())
    )


def test_cagrad_without_radius_or_without_mean_is_mean():
    J = jacobian("wide", 5, 0)
    assert torch.equal(CAGrad(0)(J @ J.mT), Mean()(J @ J.mT))
    J = J - J.mean(0)
    torch.testing.assert_close(CAGrad(0.5)(J @ J.mT), Mean()(J @ J.mT))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(jacobians())
def test_dualproj_passes_the_optimality_test(J):
    m = len(J)
    norms = J.norm(dim=1)
    w, u = DualProj()(J @ J.mT), torch.full((m,), 1 / max(m, 1), dtype=torch.float64)
    # A sum of gradients can cancel: the unit of length is that of its terms.
    size = norms.sum() / max(m, 1)
    noise = 1e-14 * (w * norms).sum()
    assert (w >= u).all()
    update = J.mT @ w
    assert (J @ update >= -(1e-8 * size + noise) * norms).all()
    assert ((w - u) @ (J @ update)).abs() <= 1e-8 * size**2 + noise * (w * norms).sum()


@pytest.mark.parametrize("m", [2, 6, 20])
@pytest.mark.parametrize("seed", range(5))
def test_dualproj_agrees_with_quadprog(m, seed):
    J = jacobian("wide", m, seed)
    J = J - 0.8 * J.mean(0)
    G, u = J @ J.mT, np.linspace(0.5, 2, m)
    w = quadprog.solve_qp(G.numpy(), np.zeros(m), np.eye(m), u)[0]
    torch.testing.assert_close(DualProj(u.tolist())(G), torch.from_numpy(w), rtol=1e-7, atol=1e-8)
    assert_optimal(G, torch.from_numpy(u)[None], DualProj(u.tolist())(G)[None])
