"""GradDrop and TrimmedMean: their definitions number by number, parts of any width, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from gramjd.aggregation import Coordinatewise, GradDrop, Mean, Sum, TrimmedMean
from gramjd.errors import AggregatorError

from .optimality import KINDS, jacobian


def by_hand(J, lots, leak, chance=lambda p: p):
    """GradDrop one number at a time."""
    update = []
    for column, lot in zip(J.T.tolist(), lots.tolist(), strict=True):
        total = math.fsum(map(abs, column))
        positive = lot < chance((1 + math.fsum(column) / total) / 2) if total else False
        kept = [(x > 0) == positive for x in column]
        update.append(math.fsum((a + (1 - a) * k) * x for x, k, a in zip(column, kept, leak, strict=True)))
    return torch.tensor(update, dtype=torch.float64)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.sampled_from(KINDS), st.integers(1, 6), st.integers(0, 10**6), st.booleans(), st.booleans())
def test_graddrop_is_its_definition(kind, m, seed, leaking, curved):
    J = jacobian(kind, m, seed)
    g = torch.Generator().manual_seed(seed)
    leak = torch.rand(m, generator=g, dtype=torch.float64).tolist() if leaking else [0.0] * m
    aggregator = GradDrop(leak if leaking else None, torch.square if curved else None, seed)
    lots = torch.rand(J.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = by_hand(J.numpy(), lots, leak, (lambda p: p * p) if curved else (lambda p: p))
    torch.testing.assert_close(aggregator.aggregate(J), expected, rtol=1e-9, atol=1e-12)


def test_graddrop_agrees_with_torchjd_on_its_draws():
    reference = pytest.importorskip("torchjd.aggregation")
    for seed in range(50):
        J, leak = jacobian("wide", 5, seed), torch.linspace(0, 1, 5, dtype=torch.float64)
        torch.manual_seed(seed)
        expected = reference.GradDrop(leak=leak)(J)
        torch.manual_seed(seed)
        torch.testing.assert_close(GradDrop(leak).aggregate(J), expected)


def test_graddrop_keeps_each_sign_as_often_as_its_share():
    J = torch.tensor([[3.0], [-1.0]], dtype=torch.float64).expand(2, 20000)
    update = GradDrop(seed=1).aggregate(J)
    assert set(update.tolist()) == {3.0, -1.0}
    assert (update > 0).double().mean().item() == pytest.approx(0.75, abs=0.015)


def test_graddrop_at_the_ends():
    J = jacobian("wide", 4, 0)
    torch.testing.assert_close(GradDrop([1.0] * 4).aggregate(J), Sum().aggregate(J))
    torch.testing.assert_close(GradDrop().aggregate(J.abs()), Sum().aggregate(J.abs()))
    torch.testing.assert_close(GradDrop(f=torch.ones_like).aggregate(J), J.clamp_min(0).sum(0))
    assert GradDrop().aggregate(torch.full((4, 2), 1e38)).tolist() == [math.inf] * 2
    tiny, large = (GradDrop(seed=2).aggregate(J * s) / s for s in (1e-300, 1e300))
    torch.testing.assert_close(tiny, large)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.sampled_from(KINDS), st.integers(1, 9), st.integers(0, 10**6), st.integers(0, 4))
def test_trimmed_mean_is_scipys(kind, m, seed, trim):
    J = jacobian(kind, m, seed)
    if m <= 2 * trim:
        with pytest.raises(AggregatorError, match=f"needs at least {2 * trim + 1} gradients; got {m}"):
            TrimmedMean(trim).aggregate(J)
        return
    expected = trim_mean(J.numpy(), (trim + 0.5) / m if trim else 0, axis=0)
    np.testing.assert_allclose(TrimmedMean(trim).aggregate(J).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_trimmed_mean_is_mean_and_median_at_the_ends():
    J = jacobian("wide", 7, 0)
    torch.testing.assert_close(TrimmedMean(0).aggregate(J), Mean().aggregate(J))
    torch.testing.assert_close(TrimmedMean(3).aggregate(J), J.median(0).values)
    liar = torch.cat([J, 1e9 * torch.ones_like(J[:1])])
    assert (TrimmedMean(1).aggregate(liar) <= J.amax(0)).all()


@pytest.mark.parametrize("make", [lambda: GradDrop([0.1, 0.5, 0, 1, 0.2], seed=3), lambda: TrimmedMean(2)])
@pytest.mark.parametrize("widths", [[1] * 21, [21], [0, 5, 16], [17, 0, 1, 3]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_parts_of_any_width_give_the_same_numbers(make, widths, dtype):
    J = jacobian("wide", 5, 0).to(dtype)
    aggregator, whole = make(), make().aggregate(J)
    assert whole.dtype == dtype
    torch.testing.assert_close(torch.cat([aggregator.combine(part) for part in J.split(widths, 1)]), whole)
    again, parts = make(), [s.T.contiguous().T for s in J.split(widths, 1)]
    torch.testing.assert_close(torch.cat([again.combine(part) for part in parts]), whole)


def test_16_bit_parts_are_summed_in_more():
    J = torch.full((300, 2), 1.0).bfloat16()
    assert GradDrop().aggregate(J).tolist() == [300.0, 300.0]
    assert TrimmedMean(1).aggregate(J * 1.0).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("aggregator", [GradDrop(), TrimmedMean(1)], ids=repr)
@pytest.mark.parametrize(
    ("J", "message"),
    [
        (torch.full((4, 3), math.nan), "must be finite; 12 of 12 numbers"),
        (torch.tensor([[1.0], [math.inf], [0.0], [0.0]]), "must be finite; 1 of 4 numbers"),
        (torch.ones(4), r"real floating-point \[m, n\] tensor; got shape \[4\]"),
        (torch.ones(4, 3, dtype=torch.int64), "torch.int64"),
        ([[1.0]], "got list"),
    ],
)
def test_refuses_bad_gradients(aggregator, J, message):
    with pytest.raises(AggregatorError, match=message):
        aggregator.combine(J)


@pytest.mark.parametrize("aggregator", [GradDrop(), TrimmedMean(0)], ids=repr)
def test_is_no_function_of_the_gramian(aggregator):
    with pytest.raises(AggregatorError, match=r"Gramian is not enough: pass it to gram_backward, or call .*aggregate"):
        aggregator(torch.eye(3))
    assert isinstance(aggregator, Coordinatewise)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradDrop([0.5, 1.5]), "leak must lie between 0 and 1"),
        (lambda: GradDrop([[0.5]]), "leak must be a vector"),
        (lambda: GradDrop(f=1), "f must be a function"),
        (lambda: GradDrop(seed="a"), "seed must be"),
        (lambda: GradDrop([0.5]).aggregate(torch.ones(2, 2)), "leak has 1 entries, but there are 2 gradients"),
        (lambda: TrimmedMean(-1), "trim must be an int, 0 or more; got -1"),
        (lambda: TrimmedMean(True), "trim must be an int"),
    ],
)
def test_refuses_bad_options(make, message):
    with pytest.raises(AggregatorError, match=message):
        make()
