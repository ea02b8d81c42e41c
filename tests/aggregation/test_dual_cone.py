"""The dual-cone solver against its optimality test, against quadprog, and stage by stage."""

import numpy as np
import pytest
import quadprog
import torch
from hypothesis import given, settings

from gramjd.aggregation.solvers import dual_cone, native
from gramjd.aggregation.solvers.interior import interior
from gramjd.aggregation.solvers.pivoting import pivot
from gramjd.errors import AggregatorError

from .optimality import KINDS, assert_optimal, jacobian, jacobians


@pytest.fixture
def tensors_only(monkeypatch):
    """As where nothing was compiled."""
    monkeypatch.setattr(native, "COMPILED", None)


def eye(m):
    return torch.eye(m, dtype=torch.float64)


def by_quadprog(G, U):
    """Row by row: min 1/2 v^T G v subject to v >= u."""
    m = len(G)
    return torch.from_numpy(np.stack([quadprog.solve_qp(G.numpy(), np.zeros(m), np.eye(m), u.numpy())[0] for u in U]))


@settings(derandomize=True, deadline=None, max_examples=800)
@given(jacobians())
def test_optimal_on_any_gramian(J):
    G = J @ J.mT
    assert_optimal(G, eye(len(G)), dual_cone(G, eye(len(G))))


@pytest.mark.parametrize("m", [33, 120])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "decay"])
def test_optimal_on_larger_gramians(kind, m):
    J = jacobian(kind, m, seed=m)
    G = J @ J.mT
    assert_optimal(G, eye(m), dual_cone(G, eye(m)))


@pytest.mark.parametrize("m", [20, 40])
def test_optimal_when_eigenvalues_decay_to_nothing(m):
    J = jacobian("decay", m, seed=1)
    assert_optimal(J @ J.mT, eye(m), dual_cone(J @ J.mT, eye(m)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["low", "rank one", "duplicates", "opposites", "half space", "zero rows"])
def test_rounding_that_leaves_a_gramian_indefinite_costs_no_more_than_the_rounding(kind, dtype):
    J = jacobian(kind, 24, seed=3).to(dtype)
    G = J @ J.mT
    W = dual_cone(G, eye(24))
    # The problem solved is that of a neighbour of G; on G itself the test holds up to that distance, times |w|.
    noise = 10 * torch.finfo(dtype).eps * float(W.sum(1).max()) ** 2
    assert_optimal(G, eye(24), W, tol=noise)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("m", [2, 7, 30, 100])
def test_agrees_with_quadprog(m, seed):
    J = jacobian("wide", m, seed)
    J = J - 0.8 * J.mean(0)
    G = J @ J.mT
    torch.testing.assert_close(dual_cone(G, eye(m)), by_quadprog(G, eye(m)), rtol=1e-7, atol=1e-7)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(jacobians())
def test_any_nonnegative_lower_bounds(J):
    m = len(J)
    U = torch.rand(3, m, dtype=torch.float64, generator=torch.Generator().manual_seed(m))
    U[1, m // 2 :] = 0
    U[2] = 0
    G = J @ J.mT
    W = dual_cone(G, U)
    # A sum of gradients can cancel: the unit of length is that of its terms, not of the sum.
    norms = G.diagonal().sqrt()
    size = (U * norms).sum(1, keepdim=True)
    assert (U <= W).all()
    assert (-1e-8 * size * norms - 1e-14 * (W @ torch.outer(norms, norms)) <= W @ G).all()
    gap = ((W - U) * (W @ G)).sum(1, keepdim=True).abs()
    assert (gap <= 1e-8 * size**2 + 1e-14 * (W * norms).sum(1, keepdim=True) ** 2).all()
    assert torch.equal(W[2], U[2])


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("kind", KINDS)
def test_tol_bounds_the_error_and_keeps_feasibility(kind, tol):
    m = 40
    J = jacobian(kind, m, seed=5)
    G = J @ J.mT
    rough, exact = dual_cone(G, eye(m), tol), dual_cone(G, eye(m))
    assert (rough >= eye(m)).all()
    error = torch.linalg.vector_norm((rough - exact) @ J, dim=1)
    assert (error <= (tol + 1e-8**0.5) * torch.linalg.vector_norm(J, dim=1)).all()


@pytest.mark.parametrize("m", [5, 60])
def test_pivoting_from_the_worst_of_guesses(m):
    J = jacobian("wide", m, seed=m)
    C = torch.corrcoef(J)
    exact = interior(C, C)
    for start in (torch.ones_like(C), torch.zeros_like(C)):
        torch.testing.assert_close(pivot(C, C, start > 0), exact, rtol=1e-9, atol=1e-9)


def test_an_answer_that_misses_the_accuracy_is_never_returned(tensors_only, monkeypatch):
    import sys

    module = sys.modules["gramjd.aggregation.solvers.dual_cone"]
    monkeypatch.setattr(module, "_all_others", lambda L, V: None)
    monkeypatch.setattr(module, "pivot", lambda A, Q, *rest: torch.zeros_like(Q))
    monkeypatch.setattr(module, "nonnegative", lambda A, B, X, room, size: torch.zeros_like(X))
    G = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
    with pytest.raises(AggregatorError, match="could not project onto the dual cone"):
        dual_cone(G, eye(2))


@pytest.mark.parametrize("m", [2, 3, 9, 40])
def test_gradients_that_all_bind_need_no_guess(tensors_only, monkeypatch, m):
    """Gradients to the corners of a simplex, nearly: each projection is orthogonal to all other gradients."""
    import sys

    module = sys.modules["gramjd.aggregation.solvers.dual_cone"]
    monkeypatch.setattr(module, "guess", None)
    monkeypatch.setattr(module, "pivot", None)
    J = torch.eye(m, dtype=torch.float64) + 1e-3 * jacobian("full", m, seed=m)[:, :m]
    J = (J - 0.9 * J.mean(0)) * torch.logspace(-3, 3, m, dtype=torch.float64)[:, None]
    G = J @ J.mT
    W = dual_cone(G, eye(m))
    assert_optimal(G, eye(m), W)
    assert (W > 0).all()


def test_least_squares_take_over_where_pivoting_gives_up(tensors_only, monkeypatch):
    import sys

    module = sys.modules["gramjd.aggregation.solvers.dual_cone"]
    monkeypatch.setattr(module, "pivot", lambda A, Q, *rest: torch.zeros_like(Q))
    J = jacobian("wide", 12, seed=4)
    assert_optimal(J @ J.mT, eye(12), dual_cone(J @ J.mT, eye(12)))
