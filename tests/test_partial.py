"""Partial Jacobian descent: what lies below the deepest wanted layer is visited by the second pass alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import gramjd
from gramjd.engine.choice import only
from gramjd.engine.walk import Walk
from tests.engine.test_passes import Counted
from tests.oracle import oracle_gramian, relative_error
from tests.small import F64


class Net(nn.Module):
    """Five layers, each behind a node that notes when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4, dtype=F64) for _ in range(5))
        self.calls: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        for n, layer in enumerate(self.layers):
            x = Counted.apply(layer(x).tanh(), self.calls, f"layer {n}")
        return x.square().sum(1)


@pytest.fixture(params=["walk", "passes"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    with only(request.param):
        yield request.param


@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
@pytest.mark.parametrize("deepest", range(5))
def test_layers_below_the_deepest_wanted_one_are_called_once(way: str, deepest: int) -> None:
    net, m = Net(), 3
    losses = net(torch.randn(m, 4, dtype=F64))
    G = oracle_gramian(losses, list(net.layers[deepest:].parameters()))
    net.calls.clear()
    step = gramjd.gram_backward(losses, gramjd.Sum(), gramian_inputs=net.layers[deepest:])
    assert relative_error(step.gramian, G) < 1e-12
    for n in range(5):
        # A custom function is called for each row of a walk, too.
        assert net.calls.count(f"layer {n}") == (1 + m if n >= deepest else 1)
    assert all(p.grad is not None for p in net.parameters())


def test_a_walk_visits_what_leads_to_the_layer_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [module for _ in range(20) for module in (nn.Linear(4, 4), nn.Tanh())]
    model, visited = nn.Sequential(*layers, nn.Linear(4, 2)), []
    original = Walk._visit

    def counted(self: Walk, n: int) -> None:
        visited.append(self.graph.structure.names[n])
        original(self, n)

    monkeypatch.setattr(Walk, "_visit", counted)
    losses = model(torch.randn(6, 4)).square().sum(1)
    gramjd.gramian(losses, model[-1])
    last = ["AddmmBackward0", "PowBackward0", "SumBackward1", "TBackward0", *["torch::autograd::AccumulateGrad"] * 2]
    assert sorted(visited) == last
    visited.clear()
    gramjd.gramian(losses)
    assert len(visited) == 2 + 21 * 4 + 20
