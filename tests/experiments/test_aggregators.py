"""The table of aggregators, and the ridge of the published implementation."""

import pytest
import torch

import gramjd
from gramjd.errors import InputError
from gramjd.experiments.aggregators import ENTRIES, TABLE, select


def test_all_is_table_1():
    assert select("all") == list(TABLE)
    assert len(TABLE) == 11
    assert select("upgrad + ridge,MEAN,mean") == ["UPGrad + ridge", "Mean"]
    with pytest.raises(InputError, match="got nosuch; expected 'all' or names among: UPGrad, Mean"):
        select("mean,nosuch")


@pytest.mark.parametrize("name", ENTRIES)
def test_same_seed_same_updates(name):
    J = torch.randn(5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, again, other = (ENTRIES[name].make(seed).aggregate(J) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name not in {"PCGrad", "RGW", "GradDrop", "GradVac"})


def test_ridge_is_that_of_the_published_implementation():
    # Two opposite gradients, the second a thousandth of the first. Exactly, neither may lose and so nothing
    # is left. With the ridge r: minimise v^T (G / t + r I) v over v >= e_i, by hand.
    ridge, J = 1e-4, torch.tensor([[1.0], [-1e-3]], dtype=torch.float64)
    assert gramjd.UPGrad().aggregate(J).abs().item() < 1e-9
    trace = 1 + 1e-6
    G = J @ J.T / trace + ridge * torch.eye(2, dtype=torch.float64)
    first, second = torch.tensor([1.0, -G[0, 1] / G[1, 1]]), torch.tensor([-G[0, 1] / G[0, 0], 1.0])
    expected = (first + second).double() / 2
    ridged = ENTRIES["UPGrad + ridge"].make(0)
    torch.testing.assert_close(ridged(J @ J.T), expected, rtol=1e-5, atol=1e-9)
    assert ridged.aggregate(J).item() > 0.4  # the short gradient is overruled
    assert torch.equal(ridged(torch.zeros(3, 3)), torch.full((3,), 1 / 3))
