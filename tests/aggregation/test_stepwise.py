"""MoDo, SDMGrad, ExcessMTL and CRMOGM call after call: against TorchJD, loops in numpy, and what they tend to."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from gramjd import gram_backward, gramian
from gramjd.aggregation import CRMOGM, MGDA, Constant, ExcessMTL, GaussNewton, Mean, MoDo, SDMGrad, UPGrad
from gramjd.aggregation.solvers.projection import onto_simplex
from gramjd.errors import AggregatorError

from .optimality import KINDS, jacobian

DRAWS = settings(derandomize=True, deadline=None, max_examples=100)


def nearest_on_simplex(y):
    """By bisection for the level at which what stands out sums to one."""
    low, high = y.max() - 1, y.max()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(y - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(y - high, 0)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=12), st.floats(-5, 5))
def test_projection_on_the_simplex(y, shift):
    y = np.array(y)
    expected = nearest_on_simplex(y)
    np.testing.assert_allclose(onto_simplex(torch.from_numpy(y)).numpy(), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(onto_simplex(torch.from_numpy(y + shift)).numpy(), expected, rtol=0, atol=1e-13)


def test_projection_of_huge_numbers_sums_to_one():
    assert onto_simplex(torch.tensor([1e60, 3e60, -1e60], dtype=torch.float64)).tolist() == [0, 1, 0]
    assert onto_simplex(torch.full((4,), -1e60, dtype=torch.float64)).tolist() == [0.25] * 4


@DRAWS
@given(st.sampled_from(KINDS), st.integers(1, 7), st.integers(0, 10**6), st.sampled_from([0.0, 0.2]))
def test_modo_is_the_published_iteration(kind, m, seed, rho):
    weighting, w = MoDo(gamma=0.05, rho=rho), np.full(m, 1 / m)
    for call in range(4):
        J = jacobian(kind, m, seed + call)
        G = (J @ J.mT).numpy()
        w = nearest_on_simplex(w - 0.05 * (G @ w + rho * w))
        np.testing.assert_allclose(weighting(torch.from_numpy(G)).numpy(), w, rtol=1e-7, atol=1e-10)


def test_modo_and_sdmgrad_agree_with_torchjd():
    reference = pytest.importorskip("torchjd.aggregation")
    for seed in range(15):
        m = 2 + seed % 5
        pairs = [
            (MoDo(0.02, 0.1), reference.MoDoWeighting(0.02, 0.1)),
            (SDMGrad(0.3, rate=0.1), reference.SDMGradWeighting(lr=0.1)),
            (SDMGrad(0.6, [1.0] * m), reference.SDMGradWeighting(lambda_=0.6, pref_vector=torch.ones(m))),
        ]
        for ours, theirs in pairs:
            for call in range(3):
                # Theirs adds 1e-8 to a squared length; longer gradients make that nothing.
                J = jacobian("wide", m, seed + call) * (1e6 if isinstance(ours, SDMGrad) else 1)
                torch.testing.assert_close(ours(J @ J.mT), theirs(J @ J.mT), rtol=1e-7, atol=1e-9)


def test_modo_tends_to_mgda():
    J = jacobian("half space", 5, 1)
    weighting = MoDo(gamma=0.05, rho=0.0)
    for _ in range(1500):
        w = weighting(J @ J.mT)
    torch.testing.assert_close(J.mT @ w, MGDA().aggregate(J), rtol=1e-6, atol=1e-8)


def test_sdmgrad_tends_to_the_minimum_it_descends_to():
    J = jacobian("wide", 4, 2)
    G, u = (J @ J.mT).numpy(), np.array([0.1, 0.2, 0.3, 0.4])
    weighting = SDMGrad(0.5, u.tolist(), rate=0.2, steps=3000)
    best = minimize(
        lambda v: (v + 0.5 * u) @ G @ (v + 0.5 * u) / np.trace(G),
        np.full(4, 0.25),
        bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda v: v.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14},
    ).x
    torch.testing.assert_close(weighting(J @ J.mT), torch.from_numpy((best + 0.5 * u) / 1.5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [MoDo, SDMGrad])
def test_two_batches_in_one_gramian(make):
    """The losses of both batches in one vector give the unbiased product, and each batch half of the weights."""
    A, B = jacobian("full", 3, 1), jacobian("full", 3, 2)
    J = torch.cat([A, B])
    w = make(batches=2)(J @ J.mT)
    single = make()
    H = A @ B.mT
    if make is MoDo:
        v = np.full(3, 1 / 3)
        expected = nearest_on_simplex(v - 0.1 * (H.numpy() @ v + 0.1 * v))
        np.testing.assert_allclose(w.numpy(), np.tile(expected / 2, 2), rtol=1e-12)
    assert torch.equal(w[:3], w[3:])
    assert w.sum().item() == pytest.approx(1)
    assert not torch.allclose(2 * w[:3], single(A @ A.mT))
    C = jacobian("full", 3, 3)
    third = make(batches=3)
    J = torch.cat([A, B, C])
    torch.testing.assert_close(third(J @ J.mT), torch.cat([torch.zeros(6), 2 * w[:3]]).double())
    with pytest.raises(AggregatorError, match="4 losses, which 3 does not divide"):
        third(torch.eye(4))


def test_two_batches_through_gram_backward():
    p = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    X = jacobian("full", 2, 5)[:, :2]
    losses = torch.cat([torch.stack([(x @ p) ** 2, (p - x).square().sum()]) for x in X])
    weighting = MoDo(0.1, 0.0, batches=2)
    step = gram_backward(losses, weighting, retain_graph=True)
    G = gramian(losses)
    v = nearest_on_simplex(np.full(2, 0.5) - 0.1 * G[:2, 2:].numpy() @ np.full(2, 0.5))
    np.testing.assert_allclose(step.weights.numpy(), np.tile(v / 2, 2), rtol=1e-12)


def published_excess(Js, rate):
    """Algorithm of the paper with a curvature per parameter, and its first call as the baseline."""
    m = len(Js[0])
    S, w, first, found = np.zeros_like(Js[0]), np.full(m, 1 / m), None, []
    for J in Js:
        S = S + J * J
        e = np.divide(J * J, np.sqrt(S), out=np.zeros_like(J), where=S > 0).sum(1)
        if first is None:
            first = e
        else:
            w = w * np.exp(rate * e / first)
            w = w / w.sum()
        found.append(w)
    return found


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_excess_is_the_published_one_where_squares_keep_their_proportions(n, rate):
    """With rows that only change in length and signs, one curvature per loss is one per parameter."""
    for seed in range(50):
        g = np.random.default_rng(seed)
        m = int(g.integers(1, 6))
        rows = g.normal(size=(m, n)) * 10.0 ** g.uniform(-3, 3, (m, 1))
        Js = [rows * g.choice([-1, 1], (m, n)) * g.uniform(0.2, 2, (m, 1)) for _ in range(6)]
        weighting = ExcessMTL(rate)
        for J, w in zip(Js, published_excess(Js, rate), strict=True):
            np.testing.assert_allclose(weighting(torch.from_numpy(J @ J.T)).numpy(), w, rtol=1e-7)


def test_excess_agrees_with_torchjd_on_one_parameter():
    reference = pytest.importorskip("torchjd.aggregation")
    for warmup in (1, 3):
        ours, theirs = ExcessMTL(0.5, warmup), reference.ExcessMTLWeighting(0.5, warmup)
        for call in range(7):
            # Long gradients: theirs adds 1e-7 to sums of squares and to the baseline.
            J = jacobian("full", 4, call)[:, :1] * 1e6
            torch.testing.assert_close(ours(J @ J.mT), theirs(J), rtol=1e-7, atol=0)


def test_excess_without_scale_and_without_gradient():
    Js = [jacobian("wide", 4, seed) for seed in range(5)]
    units = torch.logspace(-20, 20, 4, dtype=torch.float64)[:, None]
    plain, scaled = ExcessMTL(), ExcessMTL()
    for J in Js:
        torch.testing.assert_close(scaled((units * J) @ (units * J).mT), plain(J @ J.mT))
    late = ExcessMTL()
    assert late(torch.diag(torch.tensor([1.0, 0.0]))).tolist() == [0.5, 0.5]
    # The second loss has its first gradient here: its excess is its baseline, 1, and that of the first 1 / sqrt(2).
    w = late(torch.diag(torch.tensor([1.0, 1.0])))
    assert (w[1] / w[0]).log().item() == pytest.approx(1 - 0.5**0.5)
    for _ in range(2000):
        w = late(torch.diag(torch.tensor([1e-20, 1.0])))
    assert w.isfinite().all()


def test_crmogm_averages_the_weights_of_another():
    ours, w = CRMOGM(UPGrad(), 0.7), None
    for seed in range(6):
        J = jacobian("full", 5, seed)
        fresh = UPGrad()(J @ J.mT)
        w = fresh if w is None else 0.7 * w + 0.3 * fresh
        torch.testing.assert_close(ours(J @ J.mT), w)
    ours.alpha = 0
    torch.testing.assert_close(ours(J @ J.mT), fresh)


def test_crmogm_starts_where_it_is_told_and_hands_losses_on():
    assert CRMOGM(Constant([1.0, 0.0]), 0.25, [0.0, 4.0])(torch.eye(2)).tolist() == [0.75, 1.0]
    r = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(CRMOGM(GaussNewton(0.0))(torch.eye(2), r), r)
    with pytest.raises(AggregatorError, match="GaussNewton needs the values of the losses"):
        CRMOGM(GaussNewton())(torch.eye(2))
    with pytest.raises(AggregatorError, match="initial has 2 entries, but the Gramian is 3 x 3"):
        CRMOGM(Mean(), initial=[1.0, 2.0])(torch.eye(3))
    p = torch.tensor([3.0, 4.0], requires_grad=True)
    assert gram_backward(p * 1, CRMOGM(GaussNewton(0.0))).weights.tolist() == [3, 4]


STEPPED = [MoDo(), SDMGrad(), ExcessMTL(), CRMOGM(MGDA())]


@pytest.mark.parametrize("weighting", STEPPED, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_awkward_gramians_give_weights_on_the_simplex(weighting, kind, dtype):
    for scale in (1.0,) if dtype != torch.float64 else (1e-60, 1e-30, 1.0, 1e30, 1e60):
        weighting.reset()
        for m in (1, 6):
            weighting.reset()
            for call in range(3):
                J = jacobian(kind, m, call).to(dtype)
                w = weighting((J @ J.mT * scale).requires_grad_())
                assert w.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
                assert not w.requires_grad
                assert (w >= 0).all()
                assert w.sum().item() == pytest.approx(1, rel=1e-5)
    weighting.reset()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MoDo(0.0), "gamma must be a number that is finite and above 0; got 0.0"),
        (lambda: MoDo(rho=-1.0), "rho must be"),
        (lambda: MoDo(batches=4), "batches must be 1, 2 or 3; got 4"),
        (lambda: SDMGrad(-0.1), "lambda_ must be"),
        (lambda: SDMGrad(rate=math.inf), "rate must be"),
        (lambda: SDMGrad(momentum=1), "momentum must be"),
        (lambda: SDMGrad(steps=0), "steps must be an int, 1 or more; got 0"),
        (lambda: SDMGrad(preference=[1.0, -0.5]), "preference must have no negative entry"),
        (lambda: SDMGrad(preference=[0.0, 0.0]), "and one above zero"),
        (lambda: SDMGrad(preference=[1.0, 2.0])(torch.eye(3)), "preference has 2 entries"),
        (lambda: ExcessMTL(0), "rate must be"),
        (lambda: ExcessMTL(warmup=0), "warmup must be an int, 1 or more; got 0"),
        (lambda: CRMOGM(UPGrad), r"weighting must be a function from G to weights, such as UPGrad\(\); got <class"),
        (lambda: CRMOGM(None), "weighting must be a function"),
        (lambda: CRMOGM(Mean(), 1.5), "alpha must be a number from 0 to 1; got 1.5"),
        (lambda: CRMOGM(lambda G: G)(torch.eye(3)), r"must return weights of shape \[3\]; got shape \[3, 3\]"),
    ],
)
def test_refuses_bad_options(make, message):
    with pytest.raises(AggregatorError, match=message):
        make()
