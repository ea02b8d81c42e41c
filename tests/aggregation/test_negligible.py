"""UPGrad in which short gradients do not object."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gramjd.aggregation import DualProj, Mean, UPGrad, upgrad
from gramjd.aggregation.solvers import dual_cone
from gramjd.errors import AggregatorError

from .test_fixed import NothingIsRead


def lengths_apart(m: int, seed: int) -> torch.Tensor:
    """Gradients that conflict, of lengths over four decades."""
    generator = torch.Generator().manual_seed(seed)
    J = torch.randn(m, m + 2, dtype=torch.float64, generator=generator)
    J[:, 0] = 2 * J[:, 0].sign()
    return J * 10 ** (-4 * torch.rand(m, 1, dtype=torch.float64, generator=generator))


def rms(J: torch.Tensor) -> torch.Tensor:
    return J.square().sum(1).mean().sqrt()


@pytest.mark.parametrize("m", [1, 2, 5, 32, 90])
@pytest.mark.parametrize("negligible", [0.01, 0.1, 1.0])
def test_all_are_projected_on_the_cone_of_those_that_object(m: int, negligible: float) -> None:
    J = lengths_apart(m, seed=m)
    objects = J.norm(dim=1) >= negligible * rms(J)
    K, short = J[objects], J[~objects].sum(0) / m
    expected = UPGrad().aggregate(K) * len(K) / m
    if len(K) < m:  # an additional loss: its own projection cannot conflict with it
        both = torch.cat([K, short[None]])
        last = torch.full((len(both),), 1e-300, dtype=torch.float64)
        last[-1] = 1
        expected = expected + DualProj(last).aggregate(both)
    torch.testing.assert_close(UPGrad(negligible=negligible).aggregate(J), expected, rtol=1e-9, atol=1e-12)
    assert 0 < objects.sum() <= m


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.integers(2, 12), st.integers(0, 10**6), st.sampled_from([0.003, 0.03, 0.3]), st.sampled_from([1e-9, 1.0, 1e9])
)
def test_a_loss_rises_by_no_more_than_is_allowed(m: int, seed: int, negligible: float, scale: float) -> None:
    J = lengths_apart(m, seed) * scale
    update = UPGrad(negligible=negligible).aggregate(J)
    short = J.norm(dim=1) < negligible * rms(J)
    gain, size = J @ update, J.norm(dim=1) * update.norm()
    assert (gain[~short] >= -1e-9 * size[~short]).all()
    assert (gain[short] >= -negligible * rms(J) * update.norm()).all()


def test_a_short_gradient_does_not_block_and_is_followed() -> None:
    """The exact projection of the long one is orthogonal to a short one of the other direction."""
    J = torch.tensor([[1.0, 1.0], [-1e-3, 0.0]])
    torch.testing.assert_close(UPGrad().aggregate(J), torch.tensor([0.0, 0.5]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(UPGrad(negligible=0.1).aggregate(J), J.mean(0), rtol=0, atol=1e-3)


def test_between_the_definition_and_the_mean() -> None:
    J = lengths_apart(6, seed=0)
    assert torch.equal(UPGrad(negligible=0.0)(J @ J.T), UPGrad()(J @ J.T))
    assert torch.equal(UPGrad(negligible=3.0)(J @ J.T), Mean()(J @ J.T))  # more than the square root of m: none objects


def test_all_of_one_length_object() -> None:
    J = torch.nn.functional.normalize(lengths_apart(5, seed=3), dim=1)
    assert torch.equal(UPGrad(negligible=0.9)(J @ J.T), UPGrad()(J @ J.T))


@pytest.mark.parametrize("size", [1e-40, 1e-20, 1e15])
def test_lengths_at_the_ends_of_float32(size: float) -> None:
    G = size * torch.tensor([[4.0, -0.01], [-0.01, 0.01]])
    torch.testing.assert_close(UPGrad(negligible=0.2)(G), torch.full((2,), 0.5), rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_judged_by_the_dtype_of_the_gramian(dtype: torch.dtype) -> None:
    J = lengths_apart(8, seed=4)
    G = (J @ J.T).to(dtype)
    G = G + torch.triu(G, 1) * (2 * torch.finfo(dtype).eps)  # not symmetric to the last digit
    torch.testing.assert_close(UPGrad(negligible=0.1)(G), UPGrad(negligible=0.1)(G.T.contiguous()), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("m", [0, 1, 3])
def test_no_gradients_and_zero_ones(m: int) -> None:
    assert torch.equal(UPGrad(negligible=0.1)(torch.zeros(m, m)), Mean()(torch.zeros(m, m)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 1), (0, 1)])
def test_what_is_not_finite_is_not_hidden(bad: float, place: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    G = torch.diag(torch.tensor([1.0, 1e-8]))
    G[place] = G[place[::-1]] = bad
    with pytest.raises(AggregatorError):
        UPGrad(negligible=0.1)(G)
    monkeypatch.setattr(upgrad, "dual_cone", partial(dual_cone, method="fixed"))
    assert UPGrad(negligible=0.1)(G).isnan().all()


def test_nothing_is_read_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    J = lengths_apart(7, seed=1)
    expected = UPGrad(negligible=0.1)(J @ J.T)
    monkeypatch.setattr(upgrad, "dual_cone", partial(dual_cone, method="fixed"))
    with NothingIsRead():
        weights = UPGrad(negligible=0.1)(J @ J.T)
    torch.testing.assert_close(J.T @ weights, J.T @ expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("negligible", [-1.0, math.inf, math.nan, "1", True])
def test_it_must_be_a_number(negligible: object) -> None:
    with pytest.raises(AggregatorError, match="negligible must be"):
        UPGrad(negligible=negligible)


def test_repr_makes_it_again() -> None:
    assert repr(UPGrad(negligible=0.1)) == "UPGrad(negligible=0.1)"
