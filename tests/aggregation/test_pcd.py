"""PCD against quadprog on the gradients themselves, TorchJD, and what it promises."""

import math

import numpy as np
import pytest
import quadprog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gramjd.aggregation import PCD
from gramjd.aggregation.solvers.least_distance import least_distance
from gramjd.errors import AggregatorError

from .optimality import KINDS, jacobian


def by_quadprog(J, tau, usual=None):
    """`y` from the definition, in the space of the parameters; None if the constraints contradict each other.

    NaN where they nearly do: where the way to the nearest point is thousands of times longer than to any one of them.
    """
    J = J.numpy()
    lengths = np.linalg.norm(J, axis=1)
    usual = lengths if usual is None else usual
    H = J / np.where(usual > 0, usual, 1)[:, None]
    if not H[0].any():
        return 0 * J[0]
    alive = [h for h in H[1:] if h.any()]
    if alive:
        C, b = np.array(alive), np.broadcast_to(tau, len(H) - 1)[(H[1:] != 0).any(1)] * (np.array(alive) ** 2).sum(1)
        units = np.linalg.norm(C, axis=1)
        try:
            d = quadprog.solve_qp(np.eye(C.shape[1]), H[0], (C / units[:, None]).T, b / units)[0]
        except ValueError:
            # Zero grants everyone nothing, so that without shares nothing contradicts: then it is rounding.
            return None if b.any() else np.nan * H[0]
        if np.linalg.norm(d - H[0]) > 3e3 * max(0, *((b - C @ H[0]) / units)):
            return np.nan * d
    else:
        d = H[0]
    size = np.linalg.norm(d)
    return d / size * lengths[0] if size > 1e-6 else 0 * d


@st.composite
def problems(draw):
    """J of any kind and overall scale, its rows up to 1e6 apart, and tau."""
    m = draw(st.integers(1, 7))
    J = jacobian(draw(st.sampled_from(KINDS)), m, draw(st.integers(0, 10**6)))
    exponents = draw(st.lists(st.floats(-3, 3), min_size=m, max_size=m))
    J = J * 10.0 ** torch.tensor(exponents, dtype=torch.float64)[:, None]
    # Whether a share below the rounding of the products can be had is not in the Gramian.
    shares = st.floats(0, 1).map(lambda share: share if share > 1e-6 else 0.0)
    tau = draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]) | st.lists(shares, min_size=m - 1, max_size=m - 1))
    return J, tau


@settings(derandomize=True, deadline=None, max_examples=200)
@given(problems())
def test_is_the_quadratic_program_on_the_gradients(problem):
    agrees(*problem)


def test_shares_that_opposed_gradients_cannot_all_have():
    """All on one line, both ways: no step along it grants one of them more than nothing."""
    sizes = torch.tensor([1.2914, -0.2459, -1.8259, 0.4764, -0.9089, -1.1721, 0.3380], dtype=torch.float64)
    J = sizes[:, None] * torch.tensor([1.0, -0.8583, -0.4813, -0.7119, 0.2172], dtype=torch.float64)
    for share in (1e-4, 0.001953125, 0.01, 1.0):
        torch.testing.assert_close(PCD([0.0] * 5 + [share], beta=0.0).aggregate(J), J[0])


@pytest.mark.slow
def test_is_the_quadratic_program_on_thousands_of_gramians():
    g = np.random.default_rng(0)
    for seed in range(4000):
        m = int(g.integers(1, 10))
        J = jacobian(KINDS[seed % len(KINDS)], m, seed) * torch.from_numpy(10.0 ** g.uniform(-3, 3, (m, 1)))
        agrees(J, float(g.choice([0.0, 0.02, 0.3, 1.0])) if seed % 2 else g.uniform(size=m - 1).tolist())


def agrees(J, tau):
    expected = by_quadprog(J, np.array(tau))
    update = PCD(tau, beta=0.0).aggregate(J).numpy()
    unit = float(J[0].norm())
    if expected is None:
        np.testing.assert_allclose(update, J[0].numpy(), rtol=0, atol=1e-7 * unit)
    elif not np.isnan(expected).any() and (expected.any() or not unit):
        # How much longer the parts of the update are than the update: rounding in G counts by the square of it.
        parts = float(PCD(tau, beta=0.0)(J @ J.mT).abs() @ J.norm(dim=1)) / unit if unit else 0.0
        assert np.linalg.norm(update - expected) <= (1e-7 + 1e-15 * parts**2) * unit


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_and_the_scale_of_a_secondary_loss(scale):
    for seed in range(20):
        J = jacobian("wide", 5, seed)
        plain = PCD(0.4, beta=0.0).aggregate(J)
        torch.testing.assert_close(PCD(0.4, beta=0.0).aggregate(J * scale) / scale, plain)
        units = torch.tensor([1, scale, 1, 1, scale], dtype=torch.float64)[:, None]
        torch.testing.assert_close(PCD(0.4, beta=0.0).aggregate(J * units), plain)


def test_agrees_with_torchjd_over_several_calls():
    reference = pytest.importorskip("torchjd.aggregation")
    for seed in range(60):
        m, beta = 1 + seed % 6, (0.0, 0.9, 0.999)[seed % 3]
        ours, theirs = PCD(0.3, beta), reference.PCDWeighting(0.3, beta, eps=0.0)
        for call in range(4):
            J = jacobian("wide", m, 10 * seed + call) * 3.0**call
            torch.testing.assert_close(ours(J @ J.mT), theirs(J @ J.mT), rtol=1e-7, atol=1e-9)


def test_grants_each_secondary_loss_its_share():
    for seed in range(50):
        J = jacobian("wide", 6, seed)
        U = torch.nn.functional.normalize(J, dim=1)
        update = PCD(0.5, beta=0.0).aggregate(J)
        assert update.norm().item() == pytest.approx(J[0].norm().item())
        w = PCD(0.5, beta=0.0)(J @ J.mT)
        before_rescaling = w[0] * J[0].norm() / J[0].norm()
        assert (U[1:] @ update / J[0].norm() / before_rescaling >= 0.5 - 1e-9).all()
        assert (w >= 0).all()


def test_shares_that_contradict_each_other_are_dropped():
    J = torch.tensor([[1.0, 1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(PCD(0.1).aggregate(J), J[0])
    torch.testing.assert_close(PCD(0.0).aggregate(J), torch.tensor([0.0, 2**0.5], dtype=torch.float64))
    # With tau = 0 the only direction that grants both is none at all.
    assert not PCD(0.0)(J[:, :1] @ J[:, :1].mT).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_awkward_gramians_give_finite_weights(kind, dtype):
    for m in (1, 4, 9):
        J = jacobian(kind, m, m).to(dtype)
        w = PCD(0.2)((J @ J.mT).requires_grad_())
        assert w.isfinite().all()
        assert not w.requires_grad
        assert w.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)


def test_least_distance():
    C = torch.eye(2, dtype=torch.float64)
    assert least_distance(C, torch.tensor([-1.0, -2.0]).double(), 1e-16).tolist() == [0, 0]
    assert least_distance(C, torch.tensor([1e-40, 2e-40], dtype=torch.float64), 1e-16).tolist() == [1e-40, 2e-40]
    assert least_distance(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double(), torch.ones(2).double(), 1e-16) is None
    assert least_distance(torch.zeros(0, 0).double(), torch.zeros(0).double(), 1e-16).shape == (0,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PCD(1.1), "tau must lie between 0 and 1; got 1.1"),
        (lambda: PCD([0.1, math.nan]), "tau must be finite"),
        (lambda: PCD("a"), "tau must be a vector of numbers"),
        (lambda: PCD(beta=1.0), "beta must be a number from 0 to below 1; got 1.0"),
        (lambda: PCD([0.1, 0.2])(torch.eye(2)), "tau has 2 entries, but there are 1 losses after the first"),
    ],
)
def test_refuses_bad_options(make, message):
    with pytest.raises(AggregatorError, match=message):
        make()
