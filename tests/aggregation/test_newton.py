"""GaussNewton and Sven against least squares and the pseudo-inverse on J, in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gramjd import gram_backward
from gramjd.aggregation import GaussNewton, Sven
from gramjd.errors import AggregatorError

from .optimality import KINDS, jacobian

DRAWS = settings(derandomize=True, deadline=None, max_examples=150)


@st.composite
def problems(draw):
    """J [m, n] of any kind and overall scale, and m residuals."""
    m, seed = draw(st.integers(1, 8)), draw(st.integers(0, 10**6))
    J = jacobian(draw(st.sampled_from(KINDS)), m, seed) * 10.0 ** draw(st.sampled_from([0, 0, -30, -15, 15, 30]))
    return J, torch.randn(m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def damped_least_squares(J, r, lam):
    """`argmin |r - J s|^2 + lam |s|^2`, by stacking."""
    J, r = J.numpy(), r.numpy()
    stacked = np.concatenate([J, math.sqrt(lam) * np.eye(J.shape[1])])
    return np.linalg.lstsq(stacked, np.concatenate([r, np.zeros(J.shape[1])]), rcond=None)[0]


@DRAWS
@given(problems(), st.sampled_from([1e-4, 1e-2, 1.0]), st.booleans())
def test_gauss_newton_is_damped_least_squares(problem, damping, relative):
    gauss_newton_agrees(*problem, damping, relative)


def gauss_newton_agrees(J, r, damping, relative):
    unit = float((J * J).sum() / len(J))
    if not unit:
        assert not GaussNewton(damping, relative).aggregate(J, r).any()
        return
    step = GaussNewton(damping if relative else damping * unit, relative).aggregate(J, r)
    expected = torch.from_numpy(damped_least_squares(J, r, damping * unit))
    # A bound on |step|: what is lost relative to it is lost by any method that is handed G.
    assert (step - expected).norm() <= 1e-7 * r.norm() / math.sqrt(damping * unit)


@DRAWS
@given(problems(), st.sampled_from([1e-6, 0.3, 0.9]), st.sampled_from([None, 1, 3]))
def test_sven_is_the_truncated_pseudo_inverse(problem, cutoff, rank):
    assume(is_decided(problem[0], cutoff, rank))
    sven_agrees(*problem, cutoff, rank)


@pytest.mark.slow
def test_both_on_thousands_of_gramians():
    g = np.random.default_rng(0)
    decided = dict.fromkeys(KINDS, 0)
    for seed in range(4000):
        J = jacobian(KINDS[seed % len(KINDS)], int(g.integers(1, 24)), seed) * 10.0 ** g.integers(-30, 31)
        r = torch.from_numpy(g.normal(size=len(J)))
        gauss_newton_agrees(J, r, 10.0 ** g.uniform(-5, 1), bool(seed % 2))
        cutoff, rank = g.choice([1e-6, 0.3, 0.9]), g.choice([None, 1, 3])
        if is_decided(J, cutoff, rank):
            decided[KINDS[seed % len(KINDS)]] += 1
            sven_agrees(J, r, cutoff, rank)
    assert sum(decided.values()) > 2500
    assert min(decided.values()) > 10


def is_decided(J, cutoff, rank):
    """Returns False if a singular value is near a decision, or so small that G holds no digits of it."""
    s = np.linalg.svd(J.numpy(), compute_uv=False)
    top = s.max(initial=0)
    near = np.abs(s - cutoff * top) < 1e-6 * top
    small = (s > 1e-12 * top) & (s < 1e-2 * top)
    tied = rank is not None and rank < len(s) and s[rank - 1] - s[rank] < 1e-3 * s[rank - 1]
    return not (near.any() or small.any() or tied)


def sven_agrees(J, L, cutoff, rank):
    U, s, Vt = np.linalg.svd(J.numpy(), full_matrices=False)
    top = s.max(initial=0)
    keep = (s > max(cutoff, 1e-10) * top) & (np.arange(len(s)) < (rank or len(s)))
    expected = Vt[keep].T @ ((U[:, keep].T @ L.numpy()) / s[keep])
    update = Sven(cutoff, rank).aggregate(J, L).numpy()
    assert np.linalg.norm(update - expected) <= 1e-7 * (np.linalg.norm(L) / s[keep].min() if keep.any() else 0)


def test_float32_noise_is_not_inverted():
    J = jacobian("duplicates", 40, 1)
    L = torch.ones(40, dtype=torch.float64)
    rough = Sven().aggregate(J.float(), L).double()
    torch.testing.assert_close(rough, Sven().aggregate(J, L), rtol=1e-2, atol=1e-3 * float(rough.abs().max()))
    with pytest.raises(AggregatorError, match=r"singular up to rounding .* torch.float32 Gramian: raise the damping"):
        GaussNewton(0.0).aggregate(J.float(), L)


@pytest.mark.parametrize("kind", ["low", "rank one", "duplicates", "zero rows"])
def test_without_damping_dependent_residuals_are_refused(kind):
    J = jacobian(kind, 6, 3)
    with pytest.raises(AggregatorError, match=r"singular up to rounding with GaussNewton\(damping=0.0"):
        GaussNewton(0.0).aggregate(J, torch.ones(6))


def test_badly_scaled_rows_lose_nothing():
    U, units = jacobian("wide", 6, 3), torch.logspace(-12, 12, 6, dtype=torch.float64)
    J = units[:, None] * U
    w = GaussNewton(0.0)(J @ J.mT, units)
    torch.testing.assert_close(units * w, torch.linalg.solve(U @ U.mT, torch.ones(6).double()), rtol=1e-9, atol=0)


def test_half_a_step_for_squares_and_a_whole_one_for_residuals():
    g = torch.Generator().manual_seed(0)
    A, b = torch.randn(2, 3, 3, generator=g, dtype=torch.float64)[:, :, :]
    start, goal = torch.zeros(3, dtype=torch.float64), torch.linalg.solve(A, b[0])

    def stepped(weighting, square):
        p = start.clone().requires_grad_()
        r = A @ p - b[0]
        gram_backward(r**2 if square else r, weighting)
        return start - p.grad

    for weighting in (GaussNewton(0.0), Sven()):
        torch.testing.assert_close(stepped(weighting, square=False), goal)
        torch.testing.assert_close(stepped(weighting, square=True), (start + goal) / 2)


def test_levenberg_marquardt_fits_a_curve():
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)
    y = torch.tanh(3 * x - 1) * 2
    p = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    for _ in range(30):
        p.grad = None
        gram_backward(p[0] * torch.tanh(p[1] * x + p[2]) - y, GaussNewton(1e-4))
        with torch.no_grad():
            p -= p.grad
    torch.testing.assert_close(p.detach(), torch.tensor([2.0, 3.0, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("weighting", [GaussNewton(0.1), Sven(0.1)], ids=repr)
def test_losses_of_any_shape_dtype_and_number(weighting):
    J, r = jacobian("wide", 6, 0), torch.arange(6.0)
    G = J @ J.mT
    w = weighting(G, r)
    assert torch.equal(weighting(G, r.view(2, 3).requires_grad_()), w)
    assert weighting(G.float(), r).dtype == torch.float32
    assert weighting(G.bfloat16(), r.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(weighting(G.float(), r).double(), w, rtol=1e-4, atol=1e-4)
    assert weighting(torch.ones(0, 0), torch.ones(0)).shape == (0,)
    assert weighting(torch.tensor([[4.0]]), torch.tensor(2.0)).item() == pytest.approx(
        0.5 / (1.1 if isinstance(weighting, GaussNewton) else 1)
    )


@pytest.mark.parametrize("weighting", [GaussNewton(), Sven()], ids=repr)
@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (None, r"needs the values of the losses: call it with \(G, losses\)"),
        ([1.0, 2.0], "as a real floating-point tensor; got list"),
        (torch.ones(2, dtype=torch.int64), "got torch.int64"),
        (torch.ones(3), r"losses of shape \[3\] for a Gramian that is 2 x 2"),
        (torch.tensor([1.0, math.nan]), "losses must be finite; got nan"),
    ],
)
def test_refuses_bad_losses(weighting, losses, message):
    with pytest.raises(AggregatorError, match=message):
        weighting(torch.eye(2), losses)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussNewton(-1.0), "damping must be a number that is finite, 0 or more; got -1.0"),
        (lambda: GaussNewton(math.inf), "damping must be"),
        (lambda: Sven(1.0), "cutoff must be a number from 0 to below 1; got 1.0"),
        (lambda: Sven(rank=0), "rank must be an int, 1 or more; got 0"),
    ],
)
def test_refuses_bad_options(make, message):
    with pytest.raises(AggregatorError, match=message):
        make()
