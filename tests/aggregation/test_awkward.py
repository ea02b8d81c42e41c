"""Gramians on which aggregators once returned noise, NaN or an error."""

import pytest
import torch

from gramjd.aggregation import (
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradDrop,
    NashMTL,
    SDMGrad,
    UPGrad,
)
from gramjd.errors import AggregatorError

from .families import kahan, vandermonde


def rows(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def rand(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("m", [14, 24, 100])
def test_polynomial_features_are_projected(m):
    for seed in (0, 10, 18):
        J = vandermonde(m, seed)
        for weighting in (UPGrad(), DualProj()):
            w = weighting(J @ J.mT)
            n = J.norm(dim=1)
            assert (J @ (J.mT @ w) >= -1e-12 * m * (w @ n) * n).all()


def test_triangles_close_to_singular_are_projected_in_float32():
    for seed in range(30):
        J = kahan(40, seed).float()
        for weighting in (UPGrad(), DualProj()):
            assert weighting(J @ J.mT).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "J",
    [
        rows([1], [2], [-3], [-4]),
        rows([3, 1], [-0.6, -0.2], [1.5, 0.5], [-0.9, -0.3]),
        rows([1, 1], [-1, -1], [2, 2], [-3, -3]),
        rows([1, 2], [-2, -4], [2, 1], [-2, -1]),
        rows([2, -1, -1], [-1, 2, -1], [-1, -1, 2]),
        rows([1], [-1], [0]),
    ],
    ids=lambda J: str(J.tolist()),
)
def test_config_is_zero_where_directions_balance(J, dtype):
    J = J.to(dtype)
    assert ConFIG().aggregate(J).abs().max() <= 1e-5 * J.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_config_is_zero_on_any_balanced_directions(dtype):
    for seed in range(60):
        m = 2 + 2 * (seed % 10)
        lengths = rand(seed, m) + 0.1
        lengths[1::2] *= -1
        J = torch.outer(lengths, randn(seed + 1000, 10)).to(dtype)
        assert not ConFIG()(J @ J.mT).any()


def test_config_is_not_zero_where_directions_only_nearly_balance():
    J = rows([1, 1e-4], [-1, 1e-4])
    torch.testing.assert_close(ConFIG().aggregate(J), rows(0, 2e-4), rtol=1e-6, atol=1e-12)


def test_cagrad_of_lengths_many_orders_apart():
    for seed in range(6):
        J = randn(seed, 40, 42)
        J = (J - J.mean(0)) * 10 ** (23 * rand(seed, 40, 1) - 11)
        G = J @ J.mT
        for c in (0.5, 1.0):
            w = CAGrad(c)(G)
            assert (w >= 1 / 40).all()
            assert w.isfinite().all()
            n = G.diagonal().sqrt()
            if c == 1:
                assert (G @ w >= -1e-13 * (w @ n) * n).all()


@pytest.mark.parametrize("c", [1.0, 3.0])
def test_cagrad_near_stationary_points_conflicts_with_no_gradient(c):
    """For c >= 1 zero is in the ball, and so a point where nobody loses."""
    for seed in range(40):
        m = 3 + seed % 12
        J = randn(seed, m, max(2, m // 2))
        J = (J - J.mean(0) + 1e-3 * randn(seed + 1000, *J.shape)) * 10 ** (4 * rand(seed, m, 1) - 2)
        G = J @ J.mT
        w, n = CAGrad(c)(G), G.diagonal().sqrt()
        assert (G @ w >= -8 * m * 2.3e-16 * (w @ n) * n).all()


@pytest.mark.parametrize("weighting", [NashMTL(), FairGrad(0.5), FairGrad(2.0)], ids=repr)
def test_bargains_at_a_stationary_point_of_rank_one(weighting):
    """Float32 leaves eigenvalues below zero: what is added to lift them must not pass for a gain."""
    p = 1 / getattr(weighting, "_alpha", 1.0)
    for seed in range(120):
        g = torch.Generator().manual_seed(seed)
        J = (torch.randn(20, 1, generator=g).double() @ torch.randn(1, 30, generator=g).double()).float()
        G = J @ J.mT
        w = weighting(G).double()
        assert not w.any() or ((G.double() @ w) * w**p - 1).abs().max() <= 0.05


def test_sdmgrad_takes_losses_without_preference():
    weighting = SDMGrad(0.5, preference=[0.0, 0.0, 1.0], rate=0.5, momentum=0.0, steps=200)
    w = weighting(torch.diag(rows(1, 2, 4)))
    # v minimises v1^2 + 2 v2^2 + 4 (v3 + 1/2)^2 on the simplex: v = (2, 1, 0) / 3.
    torch.testing.assert_close(w, rows(4, 2, 3) / 9, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "G",
    [
        torch.tensor([[1.0, -0.5], [-0.49, 1.0]]).bfloat16(),
        torch.tensor([[1.0, -0.5], [-0.49999, 1.0]]),
    ],
    ids=["bfloat16", "float32"],
)
def test_a_ridge_asks_for_no_more_symmetry_than_the_dtype_has(G):
    torch.testing.assert_close(UPGrad(ridge=1e-6)(G), UPGrad()(G), rtol=1e-4, atol=1e-4)


def test_a_ridge_still_refuses_what_is_not_symmetric():
    with pytest.raises(AggregatorError, match="must be symmetric"):
        UPGrad(ridge=1e-4)(torch.tensor([[1.0, -0.5], [-0.4, 1.0]]))


@pytest.mark.parametrize("size", [1e-30, 1e-32, 1e-36])
def test_small_float32_gramians_count(size):
    G = torch.tensor([[1.0, -0.9], [-0.9, 1.0]])
    torch.testing.assert_close(UPGrad()(size * G), UPGrad()(G))
    assert (NashMTL()(size * G) > 0).all()


def test_graddrop_refuses_chances_that_are_no_numbers():
    with pytest.raises(AggregatorError, match=r"f must return chances.*f\(0\.5\) is nan"):
        GradDrop(f=lambda share: share * torch.nan).aggregate(rows([1, 2], [-1, -2]))
    GradDrop(f=lambda share: 0.5).aggregate(rows([1, 2], [-1, -2]))


def test_a_row_that_is_held_back_for_hundreds_of_steps_gets_there():
    """One of its projections is 1e-9 long, and the least squares come near it by tiny steps."""
    J = vandermonde(50, 105)
    assert (UPGrad()(J @ J.mT) >= 1 / 50).all()
