"""Scalarizations against their published formulas, written down a second time and differentiated by autograd."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gramjd.errors import InputError, LossError
from gramjd.scalarization import (
    DWA,
    FAMO,
    GeometricMean,
    GradNorm,
    RandomLossWeights,
    SmoothTchebycheff,
    Uncertainty,
)
from tests.small import F64

VALUES = [0.5, 2.0, 3.5]


def losses(values: list[float] = VALUES) -> Tensor:
    return torch.tensor(values, dtype=F64, requires_grad=True)


def slopes(scalar: Tensor, L: Tensor) -> list[float]:
    return torch.autograd.grad(scalar, L, retain_graph=True)[0].tolist()


def test_uncertainty() -> None:
    weighting = Uncertainty(3, ["regression", "classification", "regression"]).double()
    with torch.no_grad():
        weighting.log_variances.copy_(torch.tensor([0.3, -0.7, 1.1]))
    L, sigma = losses(), [math.exp(s / 2) for s in (0.3, -0.7, 1.1)]
    factors = [1 / (2 * sigma[0] ** 2), 1 / sigma[1] ** 2, 1 / (2 * sigma[2] ** 2)]
    scalar = weighting(L)
    assert scalar.item() == pytest.approx(
        sum(f * v + math.log(s) for f, v, s in zip(factors, VALUES, sigma, strict=True))
    )
    assert slopes(scalar, L) == pytest.approx(factors)
    # The best log variance of a regression is the log of its loss.
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.3)
    for _ in range(500):
        optimizer.zero_grad()
        weighting(losses()).backward()
        optimizer.step()
    assert weighting.log_variances[2].item() == pytest.approx(math.log(VALUES[2]), abs=1e-6)
    assert weighting.log_variances[1].item() == pytest.approx(math.log(2 * VALUES[1]), abs=1e-6)


def test_dwa() -> None:
    weighting = DWA(temperature=1.5)
    epochs = [[[4.0, 1.0], [2.0, 3.0]], [[1.0, 1.0], [2.0, 1.0]], [[1.0, 1.0]]]
    for n, epoch in enumerate(epochs):
        for batch in epoch:
            L = losses(batch)
            found = slopes(weighting(L), L)
            if n < 2:
                assert found == [1, 1]
        weighting.end_epoch()
        if n == 1:
            rates = [1.5 / 3.0, 1.0 / 2.0]
            before = list(rates)
    powers = [math.exp(r / 1.5) for r in before]
    L = losses([1.0, 1.0])
    fresh = DWA(temperature=1.5)
    for epoch in epochs[:2]:
        for batch in epoch:
            fresh(losses(batch))
        fresh.end_epoch()
    assert slopes(fresh(L), L) == pytest.approx([2 * p / sum(powers) for p in powers], rel=1e-6)
    third = [math.exp(r / 1.5) for r in (1.0 / 1.5, 1.0 / 1.0)]
    L = losses([1.0, 1.0])
    assert slopes(weighting(L), L) == pytest.approx([2 * p / sum(third) for p in third], rel=1e-6)
    weighting.end_epoch()
    weighting.end_epoch()  # an epoch without a step changes nothing


def test_geometric_mean() -> None:
    L = losses()
    scalar = GeometricMean()(L)
    product = math.prod(VALUES) ** (1 / 3)
    assert scalar.item() == pytest.approx(product)
    assert slopes(scalar, L) == pytest.approx([product / (3 * v) for v in VALUES])


def test_smooth_tchebycheff() -> None:
    L, ideal, preference = losses(), [0.1, 0.2, 0.3], [0.2, 0.5, 0.3]
    scalar = SmoothTchebycheff(preference, ideal, mu=0.7)(L)
    powers = [math.exp(p * (v - z) / 0.7) for p, v, z in zip(preference, VALUES, ideal, strict=True)]
    assert scalar.item() == pytest.approx(0.7 * math.log(sum(powers)))
    assert slopes(scalar, L) == pytest.approx([p * x / sum(powers) for p, x in zip(preference, powers, strict=True)])
    sharp = SmoothTchebycheff(preference, ideal, mu=1e-3)(L)
    assert sharp.item() == pytest.approx(max(p * (v - z) for p, v, z in zip(preference, VALUES, ideal, strict=True)))
    even = SmoothTchebycheff(mu=0.5)(losses([1.0, 1.0]))
    assert even.item() == pytest.approx(0.5 * math.log(2 * math.exp(1.0)))


def test_random_loss_weights() -> None:
    L = losses()
    weighting = RandomLossWeights(seed=3)
    first, second = slopes(weighting(L), L), slopes(weighting(L), L)
    z = torch.randn(3, generator=torch.Generator().manual_seed(3), dtype=F64)
    assert first == pytest.approx(z.softmax(0).tolist())
    assert sum(second) == pytest.approx(1)
    assert first != second
    state = weighting.state_dict()
    third = slopes(weighting(L), L)
    weighting.load_state_dict(state)
    assert slopes(weighting(L), L) == third
    weighting.reset()
    assert slopes(weighting(L), L) == first
    torch.manual_seed(0)
    shared = slopes(RandomLossWeights()(L), L)
    assert shared == pytest.approx(
        torch.randn(3, generator=torch.Generator().manual_seed(0), dtype=F64).softmax(0).tolist()
    )


def test_famo() -> None:
    """Two steps; the logits descend on the paper's formula, with the Jacobian of softmax by autograd."""
    famo, xi, least = FAMO(rate=0.4, decay=0.2, least=0.1), torch.zeros(3, dtype=F64), 0.1
    for before, after in ((VALUES, [0.4, 1.9, 3.5]), ([0.4, 1.8, 3.0], [0.2, 1.9, 2.5])):
        L = losses(before)
        scalar = famo(L)
        z = xi.softmax(0)
        above = torch.tensor(before, dtype=F64) - least
        c = 1 / float((z / above).sum())
        assert scalar.item() == pytest.approx(c * float((z * above.log()).sum()))
        assert slopes(scalar, L) == pytest.approx((c * z / above).tolist())
        delta = above.log() - (torch.tensor(after, dtype=F64) - least).log()
        J = torch.autograd.functional.jacobian(lambda x: x.softmax(0), xi)
        xi = xi - 0.4 * (J.T @ delta + 0.2 * xi)
        famo.update({"a": torch.tensor(after[0]), "b": torch.tensor(after[1]), "c": torch.tensor(after[2])})
        assert famo.weights(3).tolist() == pytest.approx(xi.softmax(0).tolist(), rel=1e-6)


def test_famo_keeps_the_rates_equal() -> None:
    """Of two losses with one of which 100 times as steep, both fall by about one factor."""
    x = torch.tensor([3.0, 3.0], dtype=F64, requires_grad=True)
    famo, optimizer = FAMO(rate=5.0), torch.optim.SGD([x], lr=0.01)

    def values() -> Tensor:
        return torch.stack([100 * (x[0] - 1) ** 2 + 1, (x[1] - 1) ** 2 + 1]) + x.prod() * 0

    start = values().detach()
    for _ in range(200):
        optimizer.zero_grad()
        famo(values()).backward()
        optimizer.step()
        with torch.no_grad():
            famo.update(values())
    assert (values() < start).all()
    assert famo.weights(2)[1] > 0.5


def test_gradnorm() -> None:
    """Three steps: the weights descend on the paper's loss, whose gradient autograd gives for norms by autograd."""
    layer = nn.Linear(4, 3, dtype=F64)
    x = torch.randn(6, 4, dtype=F64)
    weighting = GradNorm(layer.weight, alpha=0.8, rate=0.05)
    w, first = torch.ones(3, dtype=F64), None
    for _ in range(3):
        L = layer(x).square().mean(0) * torch.tensor([1.0, 10.0, 0.1], dtype=F64)
        scalar = weighting(L)
        assert scalar.item() == pytest.approx(float((w * L.detach()).sum()))
        lengths = torch.stack([torch.autograd.grad(one, layer.weight, retain_graph=True)[0].norm() for one in L])
        first = L.detach() if first is None else first
        ratio = L.detach() / first
        v = w.clone().requires_grad_()
        target = ((w * lengths).mean() * (ratio / ratio.mean()) ** 0.8).detach()
        (slope,) = torch.autograd.grad((v * lengths - target).abs().sum(), v)
        w = w - 0.05 * slope
        w = 3 * w / w.sum()
        assert weighting.weights(3).tolist() == pytest.approx(w.tolist(), rel=1e-6)
        with torch.no_grad():
            layer.weight -= 0.05 * torch.autograd.grad(scalar, layer.weight)[0]


@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")  # task losses share the batch
def test_gradnorm_takes_a_module_and_the_graph_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    weighting = GradNorm(model[0])
    for _ in range(2):
        weighting(model(torch.randn(5, 4)).square().mean(0)).backward()
    assert weighting.weights(2).sum().item() == pytest.approx(2)
    assert model[2].weight.grad is not None


MAKERS: dict[str, Callable[[], object]] = {
    "dwa": DWA,
    "famo": FAMO,
    "geometric": GeometricMean,
    "tchebycheff": SmoothTchebycheff,
    "random": lambda: RandomLossWeights(seed=1),
    "uncertainty": lambda: Uncertainty(2),
}


@pytest.mark.parametrize("name", MAKERS)
def test_names_lists_and_vectors_are_alike(name: str) -> None:
    found = []
    for given in (losses([1.0, 2.0]), list(losses([1.0, 2.0])), dict(zip("ab", losses([1.0, 2.0]), strict=True))):
        found.append(MAKERS[name]()(given).item())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_no_vector_of_losses_is_refused(name: str) -> None:
    for bad in (torch.ones(2), torch.ones(2, 2, requires_grad=True), [losses(), losses()]):
        with pytest.raises(LossError):
            MAKERS[name]()(bad)


@pytest.mark.parametrize("name", ["dwa", "famo", "geometric"])
def test_losses_that_have_no_logarithm_are_refused(name: str) -> None:
    with pytest.raises(LossError, match="above 0"):
        MAKERS[name]()(losses([1.0, -1.0]))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: DWA(0), InputError, "temperature must be a number"),
        (lambda: FAMO(rate=-1), InputError, "rate must be a number"),
        (lambda: FAMO(decay=-1), InputError, "decay"),
        (lambda: FAMO().update(torch.ones(2)), InputError, "after a call with the losses before"),
        (lambda: GradNorm(None), InputError, "name the parameters"),
        (lambda: GradNorm(torch.ones(1, requires_grad=True), alpha=-1), InputError, "alpha"),
        (lambda: SmoothTchebycheff([-1.0, 1.0]), InputError, "must not be negative"),
        (lambda: SmoothTchebycheff([[1.0]]), InputError, "must be a vector"),
        (lambda: SmoothTchebycheff([1.0, 1.0])(losses()), LossError, "2 entries, but there are 3"),
        (lambda: Uncertainty(2)(losses()), LossError, "made for 2 losses, but there are 3"),
        (lambda: Uncertainty(2, ["noise", "regression"]), InputError, "kinds is"),
        (lambda: Uncertainty(0), InputError, "m must be an int"),
    ],
)
def test_refuses(call: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_another_number_of_losses_is_refused_until_reset() -> None:
    p = torch.ones(3, dtype=F64, requires_grad=True)
    for weighting in (FAMO(), GradNorm(p), DWA()):
        weighting(p[:2] * p[2])
        if isinstance(weighting, FAMO):
            weighting.update(torch.ones(2))
        with pytest.raises(LossError, match="for 2 losses, but now there are 3"):
            weighting(p * p.sum())
        weighting.reset()
        weighting(p * p.sum())


def test_the_state_goes_on() -> None:
    p = torch.ones(2, dtype=F64, requires_grad=True)
    for make in (FAMO, lambda: GradNorm(p), DWA):
        first = make()
        for _ in range(3):
            first(p * torch.tensor([1.0, 3.0], dtype=F64))
            if isinstance(first, FAMO):
                first.update(torch.tensor([0.5, 2.0]))
            if isinstance(first, DWA):
                first.end_epoch()
        second = make()
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert second.weights(2).tolist() == first.weights(2).tolist()
        assert second(p * 2).item() == first(p * 2).item()
        with pytest.raises(InputError, match="must be a tensor"):
            second.load_state_dict({"logits": 3})
