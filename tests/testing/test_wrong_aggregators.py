"""Aggregators that are wrong on purpose: each is caught by the checks for what is wrong with it, and by no others."""

import pytest
import torch

from gramjd import Mean, UPGrad
from gramjd.aggregation import ConFIG, NashMTL, PCGrad
from gramjd.errors import InputError
from gramjd.testing import PROPERTIES, as_subject, check_aggregator, non_conflicting, weighted

CONFLICT = {"non_conflicting", "pareto_stationary_fixed_point"}


def mean(G):
    return torch.full((len(G),), 1 / len(G), dtype=G.dtype)


def first_counts_twice(G):
    """As UPGrad with a preference: only the order is treated wrongly, and so the mean."""
    p = torch.ones(len(G))
    p[0] = 2
    return UPGrad(p)(G)


def noisy(G):
    """The right projections, of random lengths."""
    return UPGrad()(G) * (1 + torch.rand(()))


def plain_when_small(G):
    """Averages as soon as the gradients are small."""
    return mean(G) if G.trace() < 1e-4 else UPGrad()(G)


def coordinatewise(J):
    return J.median(0).values


def unit_length(J):
    """UPGrad's direction."""
    y = UPGrad().aggregate(J)
    return y / y.norm().clamp_min(1e-9 * J.norm().clamp_min(1e-300))


def bargain(G):
    """Every loss gains in proportion: the update is as long whatever the gradients are."""
    return NashMTL()(G)


def balance(G):
    """ConFIG, but of full length along one of the gradients where their directions balance, and the answer is zero."""
    n = G.diagonal().sqrt()
    inverse = torch.where(n > 0, 1 / n, 0.0)
    w = torch.eye(len(G), dtype=G.dtype)[0]
    return w if inverse @ G @ inverse <= 1e-12 * len(G) else ConFIG()(G)


class Momentum:
    def __init__(self):
        self.reset()

    def reset(self):
        self.kept = None

    def __call__(self, G):
        w = UPGrad()(G)
        self.kept = w if self.kept is None else (w + self.kept) / 2
        return self.kept


WRONG = [
    (mean, None, CONFLICT),
    (first_counts_twice, None, {"permutation_equivariant", "reduces_to_mean_without_conflict"}),
    (noisy, None, {"deterministic"}),
    (plain_when_small, None, {"non_conflicting", "scale_invariant_direction", "scale_free"}),
    (bargain, None, {"scale_free", "linear_under_scaling", "reduces_to_mean_without_conflict"}),
    (balance, None, CONFLICT | {"permutation_equivariant", "reduces_to_mean_without_conflict"}),
    (
        coordinatewise,
        "jacobian",
        CONFLICT | {"linear_under_scaling", "weighted", "reduces_to_mean_without_conflict"},
    ),
    (Momentum(), None, CONFLICT | {"deterministic", "reduces_to_mean_without_conflict"}),
]


@pytest.mark.parametrize(("aggregator", "takes", "expected"), WRONG, ids=lambda x: getattr(x, "__name__", None))
def test_caught_by_the_right_checks(aggregator, takes, expected):
    examples = 20 if aggregator is noisy else 60  # averages over draws take time
    report = check_aggregator(aggregator, takes=takes, examples=examples, shrink=False)
    assert {name for name, result in report.results.items() if not result.holds} == expected
    assert not report
    for name in expected:
        with pytest.raises(AssertionError, match=rf"{name} +FAILS"):
            report.require(name)
    report.require(*(set(PROPERTIES) - expected))


def test_a_counterexample_can_be_pasted_and_shows_what_it_says():
    result = non_conflicting(mean)
    line = next(line.strip() for line in str(result).splitlines() if line.strip().startswith("J = "))
    J = eval(line.removeprefix("J = "), {"torch": torch})
    assert torch.equal(J, result.counterexample.J)
    assert (J @ Mean().aggregate(J)).min() < 0
    assert J.shape[0] == 2
    assert "inner product -" in str(result)


def test_the_seed_of_a_draw_is_shown_and_reproduces_it():
    found = non_conflicting(PCGrad()).counterexample
    torch.manual_seed(found.seed)
    update = PCGrad().aggregate(found.J)
    torch.testing.assert_close(update, found.updates["update"])
    assert (found.J @ update).min() < 0


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    non_conflicting(PCGrad(), examples=5)
    assert torch.equal(torch.rand(2), expected)


def test_the_same_seed_finds_the_same():
    assert str(non_conflicting(mean, seed=4)) == str(non_conflicting(mean, seed=4))


def test_another_implementation():
    assert check_aggregator(mean, [], reference=Mean(), examples=20)
    report = check_aggregator(mean, [], reference=UPGrad(), examples=40)
    assert "away from the update of UPGrad()" in str(report)


def test_not_a_number_is_never_right():
    report = check_aggregator(lambda G: G.diagonal() * torch.nan, examples=5)
    assert not any(report.results.values())


def test_errors_are_counterexamples():
    def picky(G):
        raise ValueError("three losses, please")

    assert "raised ValueError: three losses, please" in str(weighted(picky))


def test_tolerance():
    def roughly(G):
        return UPGrad()(G) * (1 + 1e-5 * torch.rand(()))

    assert not check_aggregator(roughly, ["deterministic"], examples=20)
    assert check_aggregator(roughly, ["deterministic"], examples=20, tol=1e-4)


def test_float32():
    assert check_aggregator(UPGrad(), ["non_conflicting", "linear_under_scaling"], dtype=torch.float32, examples=40)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_aggregator(Mean), "got the class Mean; pass an instance"),
        (lambda: check_aggregator(3), "is a callable or has a method"),
        (lambda: check_aggregator(lambda J: J.sum()), "takes='jacobian'"),
        (lambda: check_aggregator(mean, ["nice"]), "properties must be names out of"),
        (lambda: check_aggregator(mean, examples=0), "examples must be an int, 1 or more"),
        (lambda: check_aggregator(mean, takes="rows"), "takes must be"),
        (lambda: check_aggregator(mean, ["weighted"], examples=3).require("deterministic"), "was not checked"),
    ],
)
def test_wrong_use_is_explained(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_an_aggregator_without_a_repr_is_shown_by_its_class():
    class Mine:
        def __call__(self, G):
            return mean(G)

    assert str(check_aggregator(Mine(), ["weighted"], examples=2)).splitlines()[0] == "Mine"
    assert as_subject(mean).name == "mean"
    assert as_subject(UPGrad()).name == "UPGrad()"


@pytest.mark.parametrize("seed", range(3))
def test_noise_of_full_length_is_found_with_any_seed(seed):
    assert not check_aggregator(balance, ["permutation_equivariant"], seed=seed, shrink=False)


def test_known_matrices_come_first():
    """Half of the examples at most, where they fit."""
    seen = []

    def watched(G):
        seen.append(G)
        return mean(G)

    assert weighted(watched, examples=4).examples <= 4
    assert torch.equal(seen[0], torch.tensor([[1.0, -9.0], [-9.0, 82.0]], dtype=torch.float64))
    seen.clear()
    weighted(watched, examples=4, rows=6)
    assert {len(G) for G in seen} == {6}


def test_what_is_called_how():
    class OfJacobian:
        def aggregate(self, J):
            return J.sum(0)

    assert as_subject(OfJacobian()).takes == "jacobian"
    assert as_subject(Mean()).takes == as_subject(mean).takes == "gramian"
    assert as_subject(mean, "jacobian").takes == "jacobian"
