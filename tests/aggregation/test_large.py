"""Two thousand gradients: the exact weightings pass their optimality tests there, too, of full and of low rank."""

import pytest
import torch

from gramjd.aggregation import MGDA, CAGrad, DualProj, NashMTL, _look
from gramjd.aggregation.solvers import dual_cone

from .optimality import assert_optimal

M = 2048
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["full rank", "low rank"])
def gramian(request):
    """Of 2048 gradients of different lengths, in 4096 dimensions or in 256, along one of which all losses decrease."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    J = randn(M, 2 * M) if request.param == "full rank" else torch.cat([randn(M, 1).abs() + 0.3, randn(M, 255)], 1)
    J = J * (randn(M, 1) / 2).exp()
    return J @ J.mT


def test_projections(gramian):
    some = torch.eye(M, dtype=torch.float64)[:: M // 64]
    assert_optimal(gramian, some, dual_cone(gramian, some))


def test_all_projections_of_full_rank():
    J = torch.randn(M, 2 * M, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eye = torch.eye(M, dtype=torch.float64)
    assert_optimal(J @ J.mT, eye, dual_cone(J @ J.mT, eye))


def test_dualproj(gramian):
    u = torch.full((1, M), 1 / M, dtype=torch.float64)
    assert_optimal(gramian, u, DualProj()(gramian)[None])


@pytest.mark.parametrize("freely", [("cpu",), ()], ids=["looking", "not looking"])
def test_mgda(gramian, monkeypatch, freely):
    monkeypatch.setattr(_look, "READ_FREELY", freely)
    w, norms = MGDA()(gramian), gramian.diagonal().sqrt()
    assert (w >= 0).all()
    assert w.sum().item() == pytest.approx(1, rel=1e-12)
    gains = gramian @ w
    assert ((gains - w @ gains) / norms >= -1e-9 * norms.min()).all()


@pytest.mark.parametrize("freely", [("cpu",), ()], ids=["looking", "not looking"])
def test_nash(gramian, monkeypatch, freely):
    monkeypatch.setattr(_look, "READ_FREELY", freely)
    w = NashMTL()(gramian)
    assert (w > 0).all()
    assert (w * (gramian @ w) - 1).abs().max() <= 1e-7


@pytest.mark.parametrize("freely", [("cpu",), ()], ids=["looking", "not looking"])
def test_cagrad_by_duality(gramian, monkeypatch, freely):
    monkeypatch.setattr(_look, "READ_FREELY", freely)
    w = CAGrad(0.5)(gramian)
    mean = gramian.mean().sqrt()
    s = M * w - 1
    assert (s >= 0).all()
    assert (s @ gramian @ s).sqrt() / M <= 0.5 * mean * (1 + 1e-9)
    s = s / s.sum()
    most = s @ gramian.mean(1) + 0.5 * mean * (s @ gramian @ s).sqrt()
    assert most - (gramian @ w).min() <= 1e-8 * mean * gramian.diagonal().min().sqrt()
