"""Equations on a subset of the unknowns per row, against one dense solve per row."""

import pytest
import torch

from gramjd.aggregation.solvers import native, subsets
from gramjd.aggregation.solvers.pivoting import pivot
from gramjd.aggregation.solvers.subsets import shared_view, solve_general, solve_on

from .optimality import jacobian


def cosines_of(kind, m, seed=0):
    J = jacobian(kind, m, seed)
    J = J / J.norm(dim=1, keepdim=True)
    return J @ J.mT


def subsets_of(m, rows, part, seed=0):
    """[rows, m], of sizes from nothing to twice the part, one row empty and one full."""
    g = torch.Generator().manual_seed(seed)
    free = torch.rand(rows, m, generator=g) < 2 * part * torch.rand(rows, 1, generator=g)
    free[0], free[-1] = False, True
    return free


def row_by_row(A, b, free):
    """`x A = b` on the entries that are free."""
    x = torch.zeros_like(b)
    for i, chosen in enumerate(free):
        x[i, chosen] = torch.linalg.solve(A[chosen][:, chosen].mT, b[i, chosen])
    return x


@pytest.mark.parametrize(("m", "rows"), [(1, 2), (7, 5), (31, 31), (32, 32), (41, 3), (90, 90)])
@pytest.mark.parametrize("part", [0.1, 0.5])
def test_solves_on_what_each_row_has_free(m, rows, part):
    A, free = cosines_of("wide", m), subsets_of(m, rows, part)
    b = torch.randn(rows, m, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    skew = torch.randn(m, m, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) / m
    B = A + skew - skew.mT
    torch.testing.assert_close(solve_on(A, b, free), row_by_row(A, b, free), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solve_general(B, b, free), row_by_row(B, b, free), rtol=1e-10, atol=1e-10)


def test_batches_that_do_not_fit_into_one_are_put_together_again(monkeypatch):
    A, free = cosines_of("wide", 60), subsets_of(60, 60, 0.5)
    whole = solve_on(A, A, free)
    monkeypatch.setattr(subsets, "_CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(solve_on(A, A, free), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["wide", "full"])
def test_conjugate_gradients_are_as_exact_and_leave_what_they_cannot_do(kind):
    A = cosines_of(kind, 70)
    free = subsets_of(70, 70, 0.6)
    expected = row_by_row(A, A, free)
    torch.testing.assert_close(solve_on(A, A, free, smooth=True), expected, rtol=1e-8, atol=1e-8)


def test_the_shared_view_is_the_same_problem():
    m = 64
    A = cosines_of("wide", m)
    free = torch.arange(m).expand(m, m) % 3 > 0
    free = free ^ torch.eye(m, dtype=torch.bool)
    shared, K, q = shared_view(A, A, free)
    assert torch.equal(shared, torch.arange(m) % 3 > 0)
    moved = free ^ shared
    z = solve_general(K, -q, moved)
    solution = torch.where(moved, z, q + z @ K)
    x = row_by_row(A, -A, free)
    torch.testing.assert_close(solution, torch.where(free, x, A + x @ A), rtol=1e-10, atol=1e-10)


def test_no_shared_view_where_rows_have_little_in_common_or_the_matrix_is_close_to_singular():
    m = 64
    free = ~torch.eye(m, dtype=torch.bool)
    assert shared_view(cosines_of("wide", m), cosines_of("wide", m), subsets_of(m, m, 0.4)) is None
    singular = cosines_of("low", m) + 1e-6 * torch.eye(m, dtype=torch.float64)
    assert shared_view(singular, singular, free) is None
    assert shared_view(cosines_of("wide", m), cosines_of("wide", m), free) is not None


@pytest.mark.parametrize("seed", range(3))
def test_descent_from_a_start_where_exchanges_go_in_circles(seed, monkeypatch):
    import sys

    # Nothing but descent: give up on exchanges at once.
    module = sys.modules["gramjd.aggregation.solvers.pivoting"]
    monkeypatch.setattr(native, "COMPILED", None)
    m = 30
    A = cosines_of("half space", m, seed) + 1e-5 * torch.eye(m, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    free = torch.rand(m, m, generator=g) < 0.5
    start = torch.rand(m, m, generator=g, dtype=torch.float64) * free
    monkeypatch.setattr(module, "_exchange_blocks", lambda A, Q, *rest: (torch.zeros_like(Q), torch.arange(len(Q))))
    for begin in (None, start):
        X = pivot(A, A, free, start=begin)
        Y = A + X @ A
        assert (X >= 0).all()
        assert (-1e-9 * (1 + X.sum(1, keepdim=True)) <= Y).all()
        assert (X * Y).sum(1).abs().amax() <= 1e-9 * (1 + X.amax()) ** 2


def test_blocks_are_factored_in_one_thread_and_the_others_are_given_back(monkeypatch):
    seen = []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda B: (seen.append(torch.get_num_threads()), cholesky(B))[1])
    A = cosines_of("wide", 45)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        solve_on(A, A, subsets_of(45, 45, 0.3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
