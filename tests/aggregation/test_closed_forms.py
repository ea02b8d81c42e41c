"""IMTL-G, Aligned-MTL, ConFIG, Krum, Nash-MTL and FairGrad against their definitions on J."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import root

from gramjd.aggregation import IMTLG, AlignedMTL, ConFIG, FairGrad, Krum, NashMTL

from .optimality import jacobian

PLAIN = ("full", "wide", "low", "duplicates", "rank one", "zero rows", "half space")


@st.composite
def plain_jacobians(draw, kinds=PLAIN, most=8):
    """Rows of similar lengths whose singular values are zero or well away from it."""
    m = draw(st.integers(1, most))
    J = jacobian(draw(st.sampled_from(kinds)), m, draw(st.integers(0, 10**6)))
    values = np.linalg.svd(J.numpy(), compute_uv=False)
    away = values[values > 1e-10 * values.max(initial=0)]
    return J if not len(away) or away.min() > 0.03 * away.max() else torch.eye(m, dtype=torch.float64)


def close(actual, expected, unit):
    """To 1e-7 of `unit`, a length."""
    assert torch.linalg.vector_norm(actual - torch.as_tensor(expected)) <= 1e-7 * float(unit)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(plain_jacobians())
def test_imtlg_through_the_pseudo_inverse_of_j(J):
    A = np.linalg.pinv(J.numpy(), rcond=1e-9)
    v = A.T @ (A @ np.linalg.norm(J.numpy(), axis=1))
    total = v.sum()
    if abs(total) > 1e-3 * np.abs(v).sum():
        close(IMTLG().aggregate(J), J.numpy().T @ (v / total), np.abs(v / total).max() * J.norm())
    elif not v.any():
        assert not IMTLG()(J @ J.mT).any()


@pytest.mark.parametrize("spread", [0, 8])
def test_imtlg_has_one_projection_on_all_directions(spread):
    J = jacobian("wide", 6, 0) * torch.logspace(-spread, spread, 6, dtype=torch.float64)[:, None]
    U = torch.nn.functional.normalize(J, dim=1)
    projections = U @ IMTLG().aggregate(J)
    torch.testing.assert_close(projections, projections[:1].expand(6), rtol=1e-6, atol=0)
    assert IMTLG()(J @ J.mT).sum().item() == pytest.approx(1)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(plain_jacobians(), st.sampled_from(["min", "median", "rmse"]))
def test_aligned_mtl_through_the_singular_values_of_j(J, scale):
    V, s, Ut = np.linalg.svd(J.numpy(), full_matrices=False)
    keep = s > 1e-9 * s.max(initial=0)
    if not keep.any():
        assert not AlignedMTL(scale)(J @ J.mT).any()
        return
    kept = np.sort(s[keep])
    size = {"min": kept[0], "median": kept[(len(kept) - 1) // 2], "rmse": np.sqrt((kept**2).mean())}[scale]
    expected = size * Ut[keep].T @ (V[:, keep].T @ np.full(len(J), 1 / len(J)))
    close(AlignedMTL(scale).aggregate(J), expected, size)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(plain_jacobians())
def test_config_as_stated_on_the_unit_gradients(J):
    A = J.numpy()
    lengths = np.linalg.norm(A, axis=1, keepdims=True)
    U = np.divide(A, lengths, out=np.zeros_like(A), where=lengths > 0)
    values = np.linalg.svd(U, compute_uv=False)
    y = np.linalg.pinv(U, rcond=1e-9) @ np.ones(len(A))
    length = np.linalg.norm(y)
    weak = values[values > 1e-9 * max(values.max(initial=0), 1e-9)].min(initial=1)
    if length > 1e-3 and weak > 1e-2:
        close(ConFIG().aggregate(J), (A @ y).sum() / length**2 * y, lengths.sum())


def test_config_of_opposite_gradients_is_zero():
    G = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert not ConFIG()(G).any()


@settings(derandomize=True, deadline=None, max_examples=100)
@given(plain_jacobians(kinds=("full", "wide", "half space")), st.integers(0, 2), st.integers(1, 3))
def test_krum_by_its_definition(J, byzantine, selected):
    m = len(J)
    if m < max(byzantine + 3, selected):
        return
    scores = []
    for i in range(m):
        squares = sorted(float((J[i] - J[j]).square().sum()) for j in range(m) if j != i)
        scores.append(sum(squares[: m - byzantine - 2]))
    w = Krum(byzantine, selected)(J @ J.mT)
    chosen = w.nonzero()[:, 0].tolist()
    assert len(chosen) == selected
    assert w[chosen].tolist() == pytest.approx([1 / selected] * selected)
    limit = sorted(scores)[selected - 1]
    assert all(scores[i] <= limit * (1 + 1e-9) + 1e-12 for i in chosen)


def test_krum_takes_no_outlier():
    J = torch.cat([torch.randn(8, 5), 50 + torch.randn(3, 5)])
    assert not Krum(3, 5)(J @ J.mT)[8:].any()


@settings(derandomize=True, deadline=None, max_examples=250)
@given(plain_jacobians(), st.sampled_from([0.1, 0.3, 0.5, 1.0, 2.0, 20.0]), st.sampled_from([1e-4, 1.0, 1e4]))
def test_fairgrad_solves_its_equation(J, alpha, scale):
    J = J * scale * torch.logspace(0, 1, len(J), dtype=torch.float64)[:, None]
    G = J @ J.mT
    w = FairGrad(alpha)(G)
    alive = w > 0
    if not alive.any():
        return
    assert (alive == (G.diagonal() > 0)).all()
    wanted = w[alive] ** (-1 / alpha)
    # A small gain is the difference of large terms: an error of 1e-11 in w changes it by so much.
    noise = 1e-11 * (G.abs() @ w)[alive]
    assert (((G @ w)[alive] - wanted).abs() <= 1e-7 * wanted + noise).all()


@pytest.mark.parametrize("seed", range(20))
def test_nash_agrees_with_a_root_finder(seed):
    J = jacobian("wide", 4, seed)
    G = J @ J.mT
    solution = root(lambda z: G.numpy() @ np.exp(z) - np.exp(-z), np.zeros(4), tol=1e-14)
    torch.testing.assert_close(NashMTL()(G), torch.from_numpy(np.exp(solution.x)), rtol=1e-7, atol=0)
    torch.testing.assert_close(FairGrad(1.0)(G), NashMTL()(G), rtol=1e-12, atol=0)


@pytest.mark.parametrize("angle", [0.3, 1e-2, 1e-4])
def test_nash_of_almost_opposite_gradients(angle):
    G = torch.tensor([[1.0, -np.cos(angle)], [-np.cos(angle), 1.0]], dtype=torch.float64)
    expected = float((1 + G[0, 1]) ** -0.5)
    torch.testing.assert_close(NashMTL()(G), torch.full_like(G[0], expected), rtol=1e-6, atol=0)


def test_nash_has_the_length_of_the_root_of_m_and_knows_no_lengths():
    J = jacobian("wide", 6, 0) * torch.logspace(-8, 8, 6, dtype=torch.float64)[:, None]
    unit = torch.nn.functional.normalize(J, dim=1)
    assert NashMTL().aggregate(J).norm().item() == pytest.approx(6**0.5)
    torch.testing.assert_close(NashMTL().aggregate(J), NashMTL().aggregate(unit), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("weighting", [NashMTL(), FairGrad(2.0)], ids=repr)
def test_bargains_without_a_solution_or_with_a_gradient_of_zero(weighting):
    J = torch.tensor([[1.0, 2.0], [-2.0, -4.0]], dtype=torch.float64)
    assert not weighting(J @ J.mT).any()
    G = torch.diag(torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(weighting(G), torch.tensor([1.0, 0.0, 1.0]))
