"""GradVac against the published loop on the gradients, with its targets carried from call to call."""

import doctest
import importlib
import sys

import pytest
import torch

from gramjd.aggregation import GradVac, PCGrad
from gramjd.aggregation.pcgrad import random_orders
from gramjd.errors import AggregatorError

from .optimality import jacobian


def vaccinated(J, orders, targets, beta):
    """The update, changing `targets` on the way."""
    total = torch.zeros_like(J[0])
    for i, order in enumerate(orders):
        g = J[i].clone()
        for j in order:
            a = torch.nn.functional.cosine_similarity(g, J[j], dim=0, eps=1e-300)
            t = targets[i, j].clone()
            if a < t:
                turn = t * (1 - a * a).sqrt() - a * (1 - t * t).sqrt()
                g = g + g.norm() * turn / (J[j].norm() * (1 - t * t).sqrt()) * J[j]
            targets[i, j] = (1 - beta) * t + beta * a
        total += g
    return total


@pytest.mark.parametrize("kind", ["full", "wide", "low", "half space"])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("m", [1, 2, 5])
def test_is_the_published_loop(kind, beta, m):
    weighting, generator = GradVac(beta, seed=3), torch.Generator().manual_seed(3)
    targets = torch.zeros(m, m, dtype=torch.float64)
    for call in range(5):
        J = jacobian(kind, m, call) * torch.logspace(-3, 3, m, dtype=torch.float64)[:, None]
        expected = vaccinated(J, random_orders(m, generator).tolist(), targets, beta)
        torch.testing.assert_close(weighting.aggregate(J), expected, rtol=1e-7, atol=1e-7 * float(J.norm()))
        torch.testing.assert_close(weighting.state_dict()["targets"], targets, rtol=1e-7, atol=1e-9)


def test_without_targets_it_is_pcgrad():
    J = jacobian("full", 7, 1)
    torch.testing.assert_close(GradVac(0.0, seed=5)(J @ J.mT), PCGrad(seed=5)(J @ J.mT), rtol=1e-9, atol=1e-12)


def test_turns_a_gradient_until_its_cosine_is_the_target():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    weighting = GradVac(0.0)
    weighting.load_state_dict({"targets": torch.tensor([[0.0, 0.6], [-1.0, 0.0]])})
    w = weighting(torch.diag(torch.tensor([1.0, 9.0])))
    turned = a + (w[1] - 1) * b
    assert (turned @ b / turned.norm() / b.norm()).item() == pytest.approx(0.6)
    assert w[0].item() == 1


@pytest.mark.parametrize("kind", ["opposites", "rank one", "duplicates", "zero rows", "zero", "decay"])
def test_awkward_gramians_give_finite_weights(kind):
    weighting = GradVac(0.3)
    for seed in range(6):
        J = jacobian(kind, 6, seed)
        for scale in (1e-30, 1.0, 1e30):
            assert weighting(J @ J.mT * scale).isfinite().all()


def test_state():
    J = jacobian("full", 5, 1)
    G = J @ J.mT
    first, second = GradVac(0.2, seed=1), GradVac(0.2, seed=1)
    assert first.state_dict()["targets"] is None
    first(G), second(G)
    state = first.state_dict()
    again = first(G)
    second.reset()
    second.load_state_dict(state)
    assert torch.equal(second(G), again)
    with pytest.raises(AggregatorError, match=r"targets for 5 losses, but now there are 3: call reset\(\) first"):
        first(torch.eye(3))
    first.reset()
    assert first(torch.eye(3)).tolist() == [1, 1, 1]
    assert first(torch.zeros(0, 0)).shape == (0,)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan"), "a", True])
def test_refuses_a_bad_beta(beta):
    with pytest.raises(AggregatorError, match="beta must be a number from 0 to 1"):
        GradVac(beta)


def test_repr_and_example():
    assert repr(GradVac(0.5, 3)) == "GradVac(beta=0.5, seed=3)"
    importlib.import_module("gramjd.aggregation.gradvac")
    result = doctest.testmod(sys.modules["gramjd.aggregation.gradvac"])
    assert result.attempted
    assert not result.failed
