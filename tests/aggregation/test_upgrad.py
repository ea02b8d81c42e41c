"""UPGrad: closed forms, the properties the paper proves, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings

from gramjd.aggregation import Mean, UPGrad
from gramjd.errors import AggregatorError

from .optimality import jacobian, jacobians


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("J", "update"),
    [
        (rows([2, 0], [0, 2]), [1, 1]),
        (rows([1, 1], [1, 0]), [1, 0.5]),
        (rows([1, 0], [-1, 1]), [0.25, 0.75]),
        (rows([-4, 1, 1], [6, 1, 1]), [0.292398, 1.900585, 1.900585]),
        (rows([1, 0], [-1, 0]), [0, 0]),
        (rows([1, 0], [-3, 0]), [0, 0]),
        (rows([1, 0], [-1, 0], [0, 3]), [0, 1]),
        (rows([1, 2], [1, 2]), [1, 2]),
        (rows([0, 0], [1, 2]), [0.5, 1]),
        (rows([3, 4]), [3, 4]),
        (rows([0, 0], [0, 0]), [0, 0]),
    ],
)
def test_closed_forms(J, update):
    torch.testing.assert_close(UPGrad().aggregate(J), rows(*update), rtol=1e-5, atol=1e-9)


def test_two_conflicting_gradients_are_each_projected_off_the_other():
    a, b = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = b - 2 * a
    expected = 0.5 * (a - (a @ b) / (b @ b) * b) + 0.5 * (b - (a @ b) / (a @ a) * a)
    torch.testing.assert_close(UPGrad().aggregate(torch.stack([a, b])), expected)


def test_without_conflict_it_is_the_mean_to_the_last_bit():
    J = torch.rand(20, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(UPGrad()(J @ J.mT), Mean()(J @ J.mT))


@settings(derandomize=True, deadline=None, max_examples=80)
@given(jacobians())
def test_conflicts_with_no_gradient(J):
    w = UPGrad()(J @ J.mT)
    norms = torch.linalg.vector_norm(J, dim=1)
    scale = norms.sum() / max(len(J), 1)
    noise = 1e-14 * (w * norms).sum()
    assert (w >= 1 / max(len(J), 1)).all()
    assert (J @ (J.mT @ w) >= -(1e-8 * scale + noise) * norms).all()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(jacobians())
def test_powers_of_two_change_no_bit(J):
    G = J @ J.mT
    for power in (-20, 6):
        assert torch.equal(UPGrad()(G * 4.0**power), UPGrad()(G))


@pytest.mark.parametrize("kind", ["wide", "low", "opposites", "half space"])
@pytest.mark.parametrize("m", [6, 40, 100])
def test_permutation_equivariant(kind, m):
    J = jacobian(kind, m, seed=m)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(UPGrad().aggregate(J[order]), UPGrad().aggregate(J), rtol=0, atol=1e-4 * m**-0.5)
    if kind == "wide":
        torch.testing.assert_close(UPGrad()((J @ J.mT)[order][:, order]), UPGrad()(J @ J.mT)[order])


def test_deterministic():
    J = jacobian("half space", 50, seed=0)
    assert torch.equal(UPGrad()(J @ J.mT), UPGrad()(J @ J.mT))


def test_linear_under_scaling_of_the_rows():
    J = jacobian("wide", 12, seed=0)
    g = torch.Generator().manual_seed(2)
    c, d = torch.rand(2, 12, 1, generator=g, dtype=torch.float64) * 10 + 1e-3
    apart = UPGrad().aggregate(c * J) + 3 * UPGrad().aggregate(d * J)
    torch.testing.assert_close(UPGrad().aggregate((c + 3 * d) * J), apart)


def test_preference_weighs_the_projections_as_it_stands():
    J = jacobian("wide", 6, seed=1)
    p = torch.arange(1.0, 7.0, dtype=torch.float64)
    G = J @ J.mT
    alone = torch.stack([UPGrad(torch.eye(6, dtype=torch.float64)[i] + 1e-13)(G) for i in range(6)])
    torch.testing.assert_close(UPGrad(p)(G), p @ alone)
    torch.testing.assert_close(UPGrad([1 / 6] * 6)(G), UPGrad()(G))
    assert (UPGrad(p)(G) >= p).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [0, 1, 2, 40])
def test_weights_have_the_dtype_of_the_gramian(m, dtype):
    J = jacobian("wide", m, seed=0).to(dtype)
    w = UPGrad()(J @ J.mT)
    assert w.dtype == dtype
    assert w.shape == (m,)
    torch.testing.assert_close(w.double(), UPGrad()(J.double() @ J.double().mT), rtol=1e-4, atol=1e-5)


def test_float32_gradients_of_any_size_are_projected():
    J = jacobian("wide", 12, seed=0).float()
    for scale in (2.0**-50, 2.0**50):
        assert torch.equal(UPGrad()(J @ J.mT * scale**2), UPGrad()(J @ J.mT))


def test_16_bit_gramians_give_float32_weights():
    J = jacobian("wide", 12, seed=0).bfloat16()
    w = UPGrad()(J @ J.mT)
    assert w.dtype == torch.float32
    torch.testing.assert_close(w, UPGrad()(J.float() @ J.float().mT), rtol=0.1, atol=0.1)


def test_a_gramian_with_a_graph_gives_weights_without_one():
    J = jacobian("wide", 12, seed=0).requires_grad_()
    assert not UPGrad()(J @ J.mT).requires_grad
    assert not UPGrad(tol=1e-3)(J @ J.mT).requires_grad


@pytest.mark.parametrize("tol", [1e-1, 1e-4])
def test_tol_keeps_the_bound(tol):
    J = jacobian("wide", 40, seed=0)
    rough, exact = UPGrad(tol=tol), UPGrad()
    assert (rough(J @ J.mT) >= 1 / 40).all()
    off = torch.linalg.vector_norm(rough.aggregate(J) - exact.aggregate(J))
    assert off <= tol * torch.linalg.vector_norm(J, dim=1).mean()


def test_repr_makes_it_again():
    assert repr(UPGrad()) == "UPGrad()"
    assert repr(UPGrad([1, 2], tol=1e-3)) == "UPGrad(preference=[1.0, 2.0], tol=0.001)"


@pytest.mark.parametrize(
    ("G", "message"),
    [
        ([[1.0]], "must be a torch.Tensor"),
        (torch.ones(3), r"must be square.*got shape \[3\]"),
        (torch.ones(2, 3), r"got shape \[2, 3\]; to aggregate a Jacobian use .aggregate"),
        (torch.ones(2, 2, dtype=torch.int64), "floating point; got torch.int64"),
        (torch.ones(2, 2, dtype=torch.complex64), "floating point; got torch.complex64"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), r"2 of 4 entries are not, the first is G\[0, 1\] = nan"),
        (torch.tensor([[math.inf, 0.0], [0.0, 1.0]]), r"the first is G\[0, 0\] = inf"),
        (torch.tensor([[math.nan]]), r"1 of 1 entries"),
        (torch.tensor([[1.0, 0.5], [-0.5, 1.0]]), r"symmetric; G\[0, 1\] = 0.5 but G\[1, 0\] = -0.5"),
        (torch.tensor([[1.0, 0.5], [0.5, -1.0]]), r"semi-definite, as J J\^T is; G\[1, 1\] = -1"),
        (torch.tensor([[1.0, -2.0], [-2.0, 1.0]]), "an eigenvalue of -1 beside a largest one of 3"),
        (torch.tensor([[-1.0]]), "semi-definite"),
    ],
)
def test_refuses_what_is_no_gramian(G, message):
    with pytest.raises(AggregatorError, match=message):
        UPGrad()(G)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preference": [1.0, 0.0]}, "preference must be positive"),
        ({"preference": [1.0, -1.0]}, "preference must be positive"),
        ({"preference": [1.0, math.nan]}, "preference must be finite"),
        ({"preference": [[1.0]]}, r"got shape \[1, 1\]"),
        ({"preference": "ab"}, "vector of numbers, one per loss; got 'ab'"),
        ({"tol": 0}, "tol must be a positive number"),
        ({"tol": -1e-3}, "tol must be"),
        ({"tol": math.nan}, "tol must be"),
        ({"tol": "tiny"}, "tol must be .* got 'tiny'"),
    ],
)
def test_refuses_bad_options(options, message):
    with pytest.raises(AggregatorError, match=message):
        UPGrad(**options)


def test_refuses_a_preference_of_another_length():
    with pytest.raises(AggregatorError, match="preference has 3 entries, but the Gramian is 2 x 2"):
        UPGrad([1, 1, 1])(torch.eye(2))


@pytest.mark.parametrize("J", [torch.ones(3), [[1.0]], torch.ones(2, 2, dtype=torch.int64)])
def test_aggregate_refuses_what_is_no_jacobian(J):
    with pytest.raises(AggregatorError, match="the Jacobian must be"):
        UPGrad().aggregate(J)


def test_gradients_that_underflow_do_not_spoil_the_others() -> None:
    """Losses of exactly zero give gradients whose squares are no float32 numbers, beside ordinary ones."""
    J = torch.randn(6, 3, generator=torch.Generator().manual_seed(11))
    J[:2] *= 2e-23
    J[3] *= 100
    weights = UPGrad()(J @ J.T)
    alive = J[2:]
    expected = UPGrad()(alive @ alive.T) * 4 / 6
    torch.testing.assert_close(alive.T @ weights[2:], alive.T @ expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [1e-32, 1e-38, 1e-44])
def test_a_gramian_at_the_end_of_float32_is_no_error(size: float) -> None:
    torch.testing.assert_close(UPGrad()(size * torch.eye(2)), torch.full((2,), 0.5))


def test_a_gradient_below_float32_beside_another_small_one() -> None:
    J = torch.tensor([[1e-24, 0.0], [1e-15, 1e-13]])
    assert bool(torch.isfinite(UPGrad()(J @ J.T)).all())
    with pytest.raises(AggregatorError, match="positive semi-definite"):
        UPGrad()(torch.tensor([[0.0, 1e-20], [1e-20, 1e-26]]))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_ridge_is_that_of_the_published_implementation(scale: float) -> None:
    J = torch.randn(5, 4, dtype=torch.float64) * scale
    G = J @ J.T
    expected = UPGrad()(G / G.trace() + 1e-4 * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(UPGrad(ridge=1e-4)(G), expected, rtol=1e-9, atol=0)
    assert repr(UPGrad(ridge=1e-4)) == "UPGrad(ridge=0.0001)"


@pytest.mark.parametrize("ridge", [-1.0, float("inf"), float("nan"), "1", True])
def test_ridge_must_be_a_number(ridge: object) -> None:
    with pytest.raises(AggregatorError, match="ridge must be"):
        UPGrad(ridge=ridge)


def test_the_default_dtype_is_of_no_matter():
    J = torch.randn(24, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected, before = UPGrad()(J @ J.T), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if before == torch.float32 else torch.float32)
    try:
        found = UPGrad()(J @ J.T)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)
