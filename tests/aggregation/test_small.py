"""Few losses: the compiled form and the tensors find the same, and what is unusual is left to the others."""

import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from gramjd.aggregation import MGDA, DualProj, UPGrad
from gramjd.aggregation.solvers import dual_cone, native, small
from gramjd.aggregation.solvers.pivoting import pivot
from gramjd.aggregation.solvers.rounding import EPS
from gramjd.aggregation.solvers.scaling import cosines

from .optimality import KINDS, assert_optimal, jacobian, jacobians

compiled = pytest.mark.skipif(native.COMPILED is None, reason="built without a C compiler")
SIZES = (1, 2, 3, 7, 8, 9, 16, 31, 32, 33, 63, 64)


def eye(m):
    return torch.eye(m, dtype=torch.float64)


def positive_definite(m, seed, extra=2):
    """[m, m], with a diagonal that is not one."""
    J = torch.randn(m, m + extra, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return J @ J.mT / m


@pytest.fixture
def tensors_only(monkeypatch):
    monkeypatch.setattr(native, "COMPILED", None)


def gramians():
    """Regular ones, with conflict of every strength and lengths orders apart."""
    for m in SIZES:
        for share in (0.0, 0.5, 0.95):
            J = jacobian("wide", m, seed=m)
            J = (J - share * J.mean(0)) * torch.logspace(-5, 5, m, dtype=torch.float64)[:, None]
            yield J @ J.mT


@settings(derandomize=True, deadline=None, max_examples=300)
@given(jacobians())
def test_without_a_compiler_the_answers_are_optimal_too(J):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "COMPILED", None)
        G = J @ J.mT
        assert_optimal(G, eye(len(G)), dual_cone(G, eye(len(G))))


@compiled
@pytest.mark.parametrize("m", [20, 48, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_optimal_at_every_size(kind, m):
    for seed in range(3):
        J = jacobian(kind, m, seed)
        assert_optimal(J @ J.mT, eye(m), dual_cone(J @ J.mT, eye(m)))


@compiled
@pytest.mark.parametrize("weighting", [UPGrad(), DualProj(), UPGrad(ridge=1e-3), MGDA()], ids=repr)
def test_both_forms_agree(weighting, monkeypatch):
    for G in gramians():
        quick = weighting(G)
        with monkeypatch.context() as patch:
            patch.setattr(native, "COMPILED", None)
            torch.testing.assert_close(quick, weighting(G), rtol=1e-8, atol=1e-12)


@compiled
@pytest.mark.parametrize("m", SIZES)
def test_pivoting_is_the_same_from_any_guess(m, monkeypatch):
    A = positive_definite(m, m)
    Q = torch.randn(m + 3, m, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    guesses = [Q < 0, Q >= 0, torch.ones_like(Q) > 0, torch.zeros_like(Q) > 0]
    found = [pivot(A, Q, guess) for guess in guesses]
    monkeypatch.setattr(native, "COMPILED", None)
    expected = pivot(A, Q, Q < 0)
    for X in found:
        torch.testing.assert_close(X, expected, rtol=1e-8, atol=1e-9)


@compiled
@pytest.mark.parametrize("m", SIZES)
def test_what_is_missed_is_what_is_missed(m):
    A, Q = positive_definite(m, m).numpy(), np.random.default_rng(m).normal(size=(11, m))
    X, missed = native.exchange(A, Q)
    Y = Q + X @ A
    assert (X >= 0).all()
    assert (missed <= 1e-9).all()
    expected = np.where(X > 0, np.abs(Y), -Y).max(1).clip(0)
    np.testing.assert_allclose(missed, expected, rtol=0, atol=8 * m * EPS * (np.abs(Q).max() + np.abs(X).sum()))


@compiled
def test_what_it_cannot_do_it_says():
    singular = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert native.exchange(singular, np.array([[-1.0, -1.0], [1.0, 1.0]])).missed.tolist() == [math.inf, 0.0]
    assert np.isinf(native.exchange(np.eye(2), np.full((1, 2), math.nan)).missed).all()
    assert np.isinf(native.exchange(-np.eye(3), -np.ones((9, 3)))[1]).all()


@compiled
def test_guesses_are_left_as_they_were_and_layouts_do_not_matter():
    A, Q = positive_definite(6, 0).numpy(), np.random.default_rng(0).normal(size=(5, 6))
    free = np.ones((5, 6), bool)
    X, _ = native.exchange(A, Q, free)
    assert free.all()
    assert np.array_equal(X, native.exchange(A, np.asfortranarray(Q), free).X)


@compiled
@pytest.mark.parametrize("wrong", range(5))
def test_buffers_that_do_not_fit_are_refused(wrong):
    buffers = [np.eye(3), np.zeros((2, 3)), np.zeros((2, 3), bool), np.zeros((2, 3)), np.zeros(2)]
    buffers[wrong] = buffers[wrong][1:].copy()
    with pytest.raises(ValueError, match="not of one problem"):
        native.COMPILED.exchange(*buffers, 0.0, 4)
    large = [np.eye(65), np.zeros((1, 65)), np.zeros((1, 65), bool), np.zeros((1, 65)), np.zeros(1)]
    with pytest.raises(ValueError, match="1 to 64 losses"):
        native.COMPILED.exchange(*large, 0.0, 4)
    assert not native.serves(65)
    assert native.serves(64)


@compiled
@pytest.mark.parametrize("m", [8, 24, 64])
def test_rows_do_not_depend_on_the_others(m):
    """A row's digits are the same alone and beside any others."""
    A, Q = positive_definite(m, 3).numpy(), np.random.default_rng(m).normal(size=(19, m))
    together = native.exchange(A, Q).X
    for i in (0, 7, 8, 18):
        assert np.array_equal(native.exchange(A, Q[i : i + 1]).X[0], together[i])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_regular_gramians_are_scaled_as_all_others(dtype, ridge):
    for m in SIZES:
        J = jacobian("wide", m, seed=m).to(dtype)
        G = J @ J.mT
        found, expected = small.regular(G, ridge), cosines(G, ridge)
        assert (found is None) == (expected.factor is None)
        if found is not None:
            np.testing.assert_allclose(found.C, expected.C.numpy(), rtol=1e-14, atol=1e-15)
            np.testing.assert_allclose(found.norms, expected.norms.numpy(), rtol=1e-15)


@pytest.mark.parametrize(
    "G",
    [
        torch.full((3, 3), math.nan),
        torch.eye(3) * math.inf,
        torch.eye(3) - torch.tensor([0.0, math.inf, 0.0]),
        torch.eye(3) + torch.tensor([0.0, 0.5, 0.0]),
        torch.diag(torch.tensor([1.0, 0.0, 1.0])),
        torch.diag(torch.tensor([1.0, -1.0, 1.0])),
        torch.ones(3, 3),
        torch.eye(3) - 0.9,
        1e-40 * torch.eye(3),
    ],
    ids=str,
)
def test_what_is_unusual_is_left_to_others(G):
    assert small.regular(G) is None


@compiled
@pytest.mark.parametrize("broken", [("exchange",), ("nearest",), ("exchange", "nearest")])
def test_an_answer_that_fails_its_test_is_not_returned(broken, monkeypatch):
    """One solver stands in for the other, and both for none."""
    J = jacobian("wide", 12, seed=0)
    G = J @ J.mT
    expected = dual_cone(G, eye(12))

    def wrong(*problem, right):
        X, missed = right(*problem)
        return native.Exchanged(X + 1, missed + 1e-10)

    for name in broken:
        monkeypatch.setattr(native, name, partial(wrong, right=getattr(native, name)))
    if len(broken) == 2:
        assert small.project(G, eye(12)) is None
    else:
        torch.testing.assert_close(small.project(G, eye(12)), expected, rtol=1e-10, atol=1e-12)


def test_the_package_works_where_nothing_was_compiled():
    program = (
        "import sys; sys.modules['gramjd.aggregation.solvers._exchange'] = None\n"
        "import torch, gramjd\nfrom gramjd.aggregation.solvers import native\n"
        "assert native.COMPILED is None and not native.serves(2)\n"
        "print(gramjd.UPGrad()(torch.tensor([[1.0, -1.0], [-1.0, 2.0]])).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[1.0, 0.75]\n"
