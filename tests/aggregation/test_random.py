"""PCGrad against the published loop on the gradients, Random against its distribution, and the seeds of both."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gramjd.aggregation import PCGrad, Random, UPGrad
from gramjd.aggregation.pcgrad import random_orders, surgery

from .optimality import jacobian
from .test_closed_forms import close, plain_jacobians


def surgery_on(J, orders):
    """The published loop, on the gradients themselves."""
    total = torch.zeros_like(J[0])
    for i, order in enumerate(orders):
        g = J[i].clone()
        for j in order:
            if g @ J[j] < 0:
                g -= (g @ J[j]) / (J[j] @ J[j]) * J[j]
        total += g
    return total


@settings(derandomize=True, deadline=None, max_examples=150)
@given(plain_jacobians(kinds=("full", "wide", "low", "half space", "zero rows")), st.integers(0, 10**6))
def test_pcgrad_is_the_published_loop_with_the_same_orders(J, seed):
    orders = random_orders(len(J), torch.Generator().manual_seed(seed))
    assert all(sorted([i, *order]) == list(range(len(J))) for i, order in enumerate(orders.tolist()))
    close(PCGrad(seed).aggregate(J), surgery_on(J, orders.tolist()), J.norm() * len(J))


def test_pcgrad_gives_each_of_the_possible_updates_in_turn():
    J = jacobian("full", 3, 8) - 1.0
    J[2] = -J[0] - J[1] + 0.5
    others = [[1, 2], [0, 2], [0, 1]]
    possible = [surgery_on(J, orders) for orders in itertools.product(*map(itertools.permutations, others))]
    pcgrad, seen = PCGrad(0), set()
    for _ in range(120):
        update = pcgrad.aggregate(J)
        distances = torch.stack([(update - p).norm() for p in possible])
        seen.add(int(torch.stack([(possible[int(distances.argmin())] - p).norm() for p in possible]).argmin()))
        assert distances.min() < 1e-10
    assert len(seen) == len({tuple(np.round(p.numpy(), 8)) for p in possible})


@pytest.mark.parametrize("kind", ["full", "opposites", "rank one", "duplicates"])
@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_of_two_is_twice_upgrad(kind, seed):
    J = jacobian(kind, 2, seed)
    torch.testing.assert_close(PCGrad().aggregate(J), 2 * UPGrad().aggregate(J), rtol=1e-9, atol=1e-9)


def test_surgery_leaves_what_does_not_conflict_alone():
    G = torch.rand(5, 5, dtype=torch.float64)
    assert torch.equal(surgery(G @ G.mT, random_orders(5, None)), torch.eye(5, dtype=torch.float64))


def test_random_is_the_softmax_of_normal_draws():
    weighting = Random(0)
    W = torch.stack([weighting(torch.eye(3, dtype=torch.float64)) for _ in range(4000)])
    torch.testing.assert_close(W.sum(1), torch.ones(4000, dtype=torch.float64))
    z = W.log() - W.log().mean(1, keepdim=True)
    # Centred standard normal draws of three have variance 2/3 and covariance -1/3.
    torch.testing.assert_close(torch.cov(z.mT), torch.eye(3, dtype=torch.float64) - 1 / 3, rtol=0, atol=0.06)


@pytest.mark.parametrize("make", [Random, PCGrad])
def test_seeds(make):
    J = jacobian("full", 6, 3)
    G = J @ J.mT

    def draws(seed):
        weighting = make(seed)
        return torch.stack([weighting(G) for _ in range(6)])

    assert torch.equal(draws(1), draws(1))
    assert torch.equal(draws(torch.Generator().manual_seed(1)), draws(1))
    assert not torch.equal(draws(1), draws(2))
    assert not torch.equal(draws(1)[0], draws(1)[5])
    torch.manual_seed(7)
    first = draws(None)
    torch.manual_seed(7)
    assert torch.equal(draws(None), first)
