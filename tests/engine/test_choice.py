"""Which way is gone: by sizes, constants and budget, and by no clock."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import gramjd
from gramjd.engine import choice, compute
from gramjd.engine.choice import Choice, choose, only
from gramjd.engine.memory import MemoryLimits
from gramjd.errors import DenseRowsWarning
from gramjd.extend import pointwise
from gramjd.kernels.devices import Constants
from tests.oracle import oracle_gramian, relative_error

CONSTANTS = Constants(flops=1e11, half=3.0, elements=2e10, call=1e-6)


@pytest.fixture(autouse=True)
def _either_way(_walks: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The choice is left open; the constants are the same on every machine."""
    monkeypatch.setattr(choice.cost, "constants_of", lambda device, dtype: CONSTANTS)
    with only(None):
        yield


def network(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers)


def tasks(m: int, width: int, batch: int) -> list[Tensor]:
    features = network(width, width, width)(torch.randn(batch, width))
    return [nn.Linear(width, 3)(features).square().mean() for _ in range(m)]


def samples(m: int, width: int) -> Tensor:
    return network(width, width, width, 3)(torch.randn(m, width)).square().sum(1)


def chosen(losses: Tensor | list[Tensor], budget: int | None = None) -> Choice:
    found = [losses] if isinstance(losses, Tensor) else losses
    graph = compute.read(found, None)
    return choose(graph, found, MemoryLimits.of(found, budget), list(graph.targets))


@pytest.mark.parametrize(("m", "width", "batch"), [(2, 8, 4), (2, 64, 32), (4, 256, 64), (10, 256, 64)])
def test_a_few_losses_of_a_small_model_go_by_passes(m: int, width: int, batch: int) -> None:
    assert chosen(tasks(m, width, batch)).passes


@pytest.mark.parametrize(("m", "width", "batch"), [(2, 2048, 64), (10, 1024, 256)])
def test_large_layers_are_walked(m: int, width: int, batch: int) -> None:
    assert not chosen(tasks(m, width, batch)).passes


def test_samples_of_a_large_model_are_walked() -> None:
    assert chosen(samples(4, 16)).passes
    assert not chosen(samples(16, 512)).passes
    assert "more than 16" in chosen(samples(17, 4)).reason


def test_the_reason_names_the_seconds_of_both() -> None:
    assert chosen(tasks(2, 8, 4)).reason.startswith("2 passes take about 0.")


def test_constants_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where calls cost next to nothing, the products decide."""
    losses = tasks(10, 256, 64)
    assert chosen(losses).passes
    monkeypatch.setattr(choice.cost, "constants_of", lambda device, dtype: CONSTANTS._replace(call=1e-9))
    assert not chosen(losses).passes


def test_rows_respect_the_budget() -> None:
    losses = tasks(2, 8, 4)
    needed = choice.row_bytes(*_surveyed(losses))
    assert needed == 4 * (2 * (2 * 72) + 2 * 27)
    assert chosen(losses, needed).passes
    assert not chosen(losses, needed - 1).passes
    assert "bytes" in chosen(losses, needed - 1).reason


def _surveyed(losses: list[Tensor]) -> tuple[choice.Survey, compute.Graph, list[compute.Edge]]:
    graph = compute.read(losses, None)
    return choice.survey_of(graph, losses), graph, list(graph.targets)


def test_more_rows_than_training_holds_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = tasks(4, 32, 4)
    assert chosen(losses).passes
    monkeypatch.setattr(choice, "ALWAYS", 0)
    assert not chosen(losses).passes


def test_a_hook_and_a_rule_of_a_users_are_walked() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)  # type: ignore[attr-defined]
            return x**3

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
            return 3 * x**2 * gradient

    model = nn.Linear(4, 4)
    losses = Cube.apply(model(torch.randn(3, 4))).sum(1)
    assert chosen(losses).passes
    gramjd.register_rule("CubeBackward", pointwise)
    try:
        assert "rule" in chosen(losses).reason
    finally:
        gramjd.extend.unregister_rule("CubeBackward")
    hidden = model(torch.randn(3, 4))
    hidden.register_hook(lambda g: 2 * g)
    assert "hooks" in chosen(hidden.square().sum(1)).reason


def test_nothing_is_said_of_rows_that_are_not_made() -> None:
    """By passes every loss has a row of its own anyway."""
    losses = nn.BatchNorm1d(4)(nn.Linear(4, 4)(torch.randn(3, 4))).square().sum(1)
    assert relative_error(gramjd.gramian(losses).double(), oracle_gramian(losses)) < 1e-5
    with only("walk"), pytest.warns(DenseRowsWarning):
        gramjd.gramian(losses)


def test_the_survey_is_made_once_per_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = choice.survey_of.__globals__["_surveyed"]
    monkeypatch.setitem(choice.survey_of.__globals__, "_surveyed", lambda *given: (made.append(1), original(*given))[1])
    model = network(5, 7, 6)
    for _ in range(3):
        gramjd.gramian(model(torch.randn(4, 5)).square().sum(1))
    assert len(made) == 1


def test_explain_says_which_way() -> None:
    assert gramjd.explain(tasks(2, 8, 4)).way.startswith("passes: 2 passes take about")
    assert gramjd.explain(samples(17, 4)).way == "walk: more than 16 losses"
    assert "way: passes: " in str(gramjd.explain(tasks(2, 8, 4)))


def test_anomaly_mode_walks():
    x = torch.ones(3, requires_grad=True)
    losses = [(x * k).sum() for k in range(2)]
    with torch.autograd.set_detect_anomaly(True):
        chosen = choose(compute.read(losses, None), losses, MemoryLimits.of(losses, None), [])
    assert not chosen.passes
    assert "anomaly" in str(chosen)
