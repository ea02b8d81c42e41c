"""Cosine and conflict share from the Gramian, against the Jacobian itself."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.aggregation import GradDrop
from gramjd.experiments import training
from gramjd.experiments.signals import conflict_share, cosine_of, cosine_to_mean


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_against_the_jacobian(scale):
    generator = torch.Generator().manual_seed(0)
    J = scale * torch.randn(7, 20, generator=generator, dtype=torch.float64)
    w = torch.rand(7, generator=generator, dtype=torch.float64)
    J32 = J.float()
    update, mean = w @ J, J.mean(0)
    expected = update @ mean / (update.norm() * mean.norm())
    # float32 holds 1e-24 well enough; what must not underflow is the product of two such squares
    assert cosine_to_mean(J32 @ J32.T, w) == pytest.approx(expected.item(), rel=1e-5)
    pairs = [float(J[i] @ J[j]) < 0 for i in range(7) for j in range(i)]
    assert conflict_share(J @ J.T) == pytest.approx(sum(pairs) / 21)


def test_undefined_is_nan():
    assert math.isnan(cosine_to_mean(torch.zeros(2, 2), torch.ones(2)))
    assert math.isnan(cosine_to_mean(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.ones(2)))
    assert math.isnan(conflict_share(torch.ones(1, 1)))
    assert math.isnan(cosine_of([torch.zeros(2)], [torch.ones(2)]))


@pytest.mark.parametrize("aggregator", [gramjd.UPGrad(), GradDrop(seed=0), None])
def test_of_a_step_against_the_gradients_themselves(aggregator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ELU(), nn.Linear(6, 3))
    parameters = list(model.parameters())
    losses = cross_entropy(model(torch.randn(8, 5)), torch.randint(3, (8,)), reduction="none")
    rows = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]) for loss in losses]
    )
    cosine, conflicts = training._step(losses, training.Method("", aggregator), parameters)
    update = torch.cat([p.grad.flatten() for p in parameters])
    assert cosine == pytest.approx(torch.cosine_similarity(update, rows.mean(0), dim=0).item(), abs=1e-5)
    assert conflicts == pytest.approx(((rows @ rows.T).tril(-1) < 0).sum().item() / 28)
    assert (cosine == 1) == (aggregator is None)
