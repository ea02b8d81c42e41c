"""Nonnegative least squares on a factor: the compiled form, the tensors beside it, and gradients that cancel."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings

from gramjd.aggregation import MGDA, CAGrad, DualProj, UPGrad
from gramjd.aggregation.solvers import dual_cone, native
from gramjd.aggregation.solvers.nonnegative import nonnegative, one_by_one
from gramjd.aggregation.solvers.rounding import EPS, room

from .families import FAMILIES
from .optimality import KINDS, assert_optimal, jacobian, jacobians

compiled = pytest.mark.skipif(native.FACTORED is None, reason="built without a C compiler")


def eye(m):
    return torch.eye(m, dtype=torch.float64)


def randn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tensors_only(monkeypatch):
    monkeypatch.setattr(native, "COMPILED", None)
    monkeypatch.setattr(native, "FACTORED", None)


def missed(A, B, X, size):
    """How far the conditions are missed, in units of what is allowed at the end of `nonnegative`."""
    Y = (X @ A + B) @ A.mT
    return (torch.where(X > 0, Y.abs(), -Y).amax(1) / (room(len(A)) * (size + X.sum(1)))).amax()


@compiled
@pytest.mark.parametrize(("m", "r"), [(1, 1), (3, 1), (2, 5), (8, 8), (9, 7), (17, 16), (40, 9), (64, 33), (90, 90)])
def test_optimal_for_any_shape(m, r):
    A, B, size = randn(m, m, r), randn(r, 13, r), torch.ones(13, dtype=torch.float64)
    A = A / A.norm(dim=1, keepdim=True)
    X, off = native.nearest(A.numpy(), B.numpy(), room(m), size.numpy())
    assert (X >= 0).all()
    assert missed(A, B, torch.from_numpy(X), size + B.norm(dim=1)) <= 8
    assert (off <= 8 * room(m) * (1 + np.linalg.norm(B.numpy(), axis=1) + X.sum(1))).all()


@compiled
@pytest.mark.parametrize("seed", range(6))
def test_the_shortest_is_that_of_scipy(seed):
    """Of full rank x is unique; else what is compared is the rest."""
    for m, r in [(5, 9), (12, 12), (20, 6)]:
        A, b = randn(seed, m, r), randn(seed + 100, 1, r)
        A = A / A.norm(dim=1, keepdim=True)
        x = nonnegative(A, b, torch.zeros(1, m).double(), room(m), b.norm(dim=1))
        expected, _ = scipy.optimize.nnls(A.mT.numpy(), -b[0].numpy())
        torch.testing.assert_close(x @ A, torch.from_numpy(expected)[None] @ A, rtol=1e-9, atol=1e-10)
        if r >= m:
            torch.testing.assert_close(x[0], torch.from_numpy(expected), rtol=1e-8, atol=1e-9)


@compiled
def test_what_does_not_end_is_said_and_what_does_not_fit_is_refused():
    A = np.eye(3)
    nothing = np.full((1, 3), math.nan)
    assert np.isinf(native.nearest(A, nothing, 1e-15, np.ones(1)).missed).all()
    buffers = [np.eye(3), np.zeros((2, 3)), np.ones(2), np.zeros((2, 3)), np.zeros(2)]
    for wrong in range(5):
        with pytest.raises(ValueError, match="not of one problem"):
            native.FACTORED.nearest(*(b[1:].copy() if i == wrong else b for i, b in enumerate(buffers)), 1e-15)


@compiled
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_that_do_not_pass_are_done_by_tensors(name, monkeypatch):
    """Every other row comes back wrong, or without an end."""
    right = native.nearest

    def wrong(A, B, room, size):
        X, off = right(A, B, room, size)
        X[::3] += 1
        off[::3] = 1.0
        X[1::3], off[1::3] = math.nan, math.inf
        return native.Exchanged(X, off)

    J = FAMILIES[name](30, 0)
    expected = dual_cone(J @ J.mT, eye(30))
    monkeypatch.setattr(native, "nearest", wrong)
    found = dual_cone(J @ J.mT, eye(30))
    length = J.norm(dim=1).amax()
    # A Gramian knows the length of a difference to the root of its rounding, in units of the terms.
    noise = 1e-7 * (found @ J.norm(dim=1)).amax()
    assert ((found - expected) @ J).norm(dim=1).amax() <= 1e-7 * length + noise


def test_long_problems_are_not_done_one_after_the_other(tensors_only):
    assert not one_by_one(torch.eye(2).double(), 2)


@compiled
def test_what_is_long_and_what_is_not():
    even, uneven = torch.ones(1024, 200).double(), torch.ones(1024, 200).double()
    uneven[:, 0] = 1e-4
    assert one_by_one(even, 4)
    assert not one_by_one(even, 1024)
    assert one_by_one(uneven, 1024)
    assert not one_by_one(torch.randn(4096, 4096).double().tril(), 4096)
    assert not one_by_one(torch.zeros(3, 0).double(), 3)
    assert not one_by_one(torch.zeros(3, 3).double(), 0)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(jacobians())
def test_tensors_alone_are_optimal(J):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "COMPILED", None)
        patch.setattr(native, "FACTORED", None)
        assert_optimal(J @ J.mT, eye(len(J)), dual_cone(J @ J.mT, eye(len(J))))


@pytest.mark.parametrize("weighting", [UPGrad(), DualProj(), MGDA(), CAGrad(0.5)], ids=repr)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("decay", "zero")])
def test_both_forms_give_the_same_update(weighting, kind, tensors_only, monkeypatch):
    J = jacobian(kind, 26, seed=2)
    by_tensors = weighting.aggregate(J)
    monkeypatch.undo()
    scale = J.norm(dim=1).amax()
    torch.testing.assert_close(weighting.aggregate(J), by_tensors, rtol=1e-7, atol=1e-6 * float(scale))


@pytest.mark.parametrize("weighting", [UPGrad(), DualProj(), MGDA()], ids=repr)
@pytest.mark.parametrize(("distinct", "dimensions"), [(4, 3), (12, 30), (40, 20)])
def test_equal_gradients_have_equal_weights_in_any_order(weighting, distinct, dimensions):
    """Each distinct gradient stands there one to three times."""
    places = torch.arange(distinct).repeat_interleave(torch.arange(distinct) % 3 + 1)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(1))
    J = randn(distinct, distinct, dimensions)
    J = (J - 0.8 * J.mean(0))[places]
    w, shuffled = weighting(J @ J.mT), weighting(J[order] @ J[order].mT)
    mean = torch.zeros(distinct).double().scatter_reduce(0, places, w, "mean", include_self=False)
    torch.testing.assert_close(w, mean[places], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shuffled, w[order], rtol=1e-6, atol=1e-8)


@compiled
def test_nearly_equal_rows_are_not_equal():
    A = np.array([[1.0, 0.0], [1.0, 1e-7], [-1.0, 0.0]])
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    X, _ = native.nearest(A, np.array([[-1.0, -1e-7]]), 1e-15, np.ones(1))
    np.testing.assert_allclose(X[0], [0, 1, 0], atol=1e-8)
    X, _ = native.nearest(np.repeat(A, 2, 0), np.array([[-1.0, -1e-7]]), 1e-15, np.ones(1))
    np.testing.assert_allclose(X[0], [0, 0, 0.5, 0.5, 0, 0], atol=1e-8)


@pytest.mark.parametrize("m", [5, 40, 100])
def test_gradients_that_cancel_are_all_projected_to_zero(m, monkeypatch):
    """Positive multiples of them do, so only zero is in the cone: one solution serves all rows."""
    import sys

    module = sys.modules["gramjd.aggregation.solvers.dual_cone"]
    monkeypatch.setattr(module, "guess", None)
    monkeypatch.setattr(module, "_proximal", None)
    lengths = torch.logspace(-2, 2, m, dtype=torch.float64)[:, None]
    J = randn(m, m, m + 3)
    J = (J - J.mean(0)) * lengths
    W = dual_cone(J @ J.mT, eye(m))
    assert (eye(m) <= W).all()
    assert torch.equal(W.diagonal(), torch.ones(m).double())
    terms = (W * lengths.mT).sum(1)
    assert ((W @ J).norm(dim=1) <= 1e-13 * m * terms).all()
    assert_optimal(J @ J.mT, eye(m), W)


def test_gradients_that_nearly_cancel_are_not_taken_for_such():
    J = randn(0, 12, 30)
    J = J - (1 - 1e-5) * J.mean(0)
    W = dual_cone(J @ J.mT, eye(12))
    assert_optimal(J @ J.mT, eye(12), W)
    assert ((W @ J).norm(dim=1) > 1e-6).all()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("m", [66, 150])
def test_close_to_singular_takes_few_calls(name, m, monkeypatch):
    """No row is left to the tensors of `nonnegative`, whose rounds are what takes long."""
    if native.FACTORED is None:
        pytest.skip("built without a C compiler")
    import sys

    module = sys.modules["gramjd.aggregation.solvers.nonnegative"]
    monkeypatch.setattr(module, "_by_tensors", None)
    J = FAMILIES[name](m, 0)
    G = J @ J.mT
    W = dual_cone(G, eye(m))
    n = G.diagonal().sqrt()
    assert (eye(m) <= W).all()
    assert (-16 * m * EPS * (W @ n)[:, None] * n <= W @ G).all()


def smooth_kernel(m):
    """Gaussians around points of the plane, and residuals of any sign."""
    x, r = randn(0, m, 2), randn(1, m)
    return torch.exp(-0.5 * torch.cdist(x, x).square()) * r[:, None] * r


@compiled
@pytest.mark.parametrize("m", [50, 110])
def test_smooth_kernels_are_projected(m):
    G = smooth_kernel(m)
    n = G.diagonal().sqrt()
    for w, u in ((UPGrad()(G) * m, torch.ones(m)), (DualProj()(G) * m, torch.ones(m))):
        assert (w >= u).all()
        assert (G @ w >= -16 * m * EPS * (w @ n) * n).all()


@pytest.mark.parametrize("tol", [1e-1, 1e-2])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "decay"])
@pytest.mark.parametrize("m", [70, 130])
def test_tol_is_about_the_error_of_a_projection(kind, tol, m):
    J = jacobian(kind, m, seed=5)
    G = J @ J.mT
    rough, exact = dual_cone(G, eye(m), tol), dual_cone(G, eye(m))
    assert (rough >= eye(m)).all()
    error = ((rough - exact) @ J).norm(dim=1)
    assert (error <= (3 * tol + 1e-4) * J.norm(dim=1)).all()
    # On the average, it is within what was asked for.
    assert error.mean() <= tol * J.norm(dim=1).mean()


def test_tol_leaves_out_what_is_only_needed_for_the_last_digits(monkeypatch):
    import sys

    module = sys.modules["gramjd.aggregation.solvers.dual_cone"]
    monkeypatch.setattr(module, "pivot", None)
    J = jacobian("wide", 128, seed=0)
    G = J @ J.mT
    for tol in (1e-1, 1e-2):
        assert (UPGrad(tol=tol)(G) >= 1 / 128).all()
    with pytest.raises(TypeError):
        UPGrad(tol=1e-4)(G)


@compiled
def test_it_can_be_interrupted():
    """A signal that has arrived stops it after a row: the handler's exception comes out."""
    import signal

    def stop(*_):
        raise InterruptedError("enough")

    A = randn(0, 300, 300).numpy()
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(InterruptedError, match="enough"):
            native.nearest(A, A, 1e-14, np.ones(300))  # a hundred times as long, or more
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
