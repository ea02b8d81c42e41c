"""The benchmark cases are what their titles say, and each can be run."""

import pytest
import torch

from gramjd.profiling.bench.cases import BENCHMARKS, CASES, select

PARAMETERS = {
    "mlp": 784 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 10 + 10,
    "cifar": 134_666,  # as published
    "tasks": 784 * 1024 + 1024 + 1024 * 1024 + 1024 + 10 * (1024 * 10 + 10),
}


@pytest.mark.parametrize("name", CASES)
def test_case_gives_m_losses_with_a_graph(name):
    work = CASES[name].build()
    family, m = name.rsplit("-", 1)
    assert CASES[name].m == int(m)
    if family in PARAMETERS:
        assert sum(p.numel() for p in work.model.parameters()) == PARAMETERS[family]
    if int(m) > 64 or name == "gpt-16":
        return  # same code as the smaller ones of its family
    losses = work.losses()
    assert losses.shape == (CASES[name].m,)
    assert losses.isfinite().all()
    losses.mean().backward()
    assert all(p.grad is not None for p in work.model.parameters())


def test_builds_are_copies_and_leave_the_random_state_alone():
    state = torch.get_rng_state()
    first, second = (CASES["tiny-4"].build().losses() for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_select():
    assert select("all") == list(BENCHMARKS)
    assert select("vgg,cifar-64,vgg-32") == ["vgg-32", "vgg-64", "cifar-64"]
    with pytest.raises(ValueError, match="got case 'vg', expected 'all', a family or a case among: mlp-32"):
        select("mlp,vg")
