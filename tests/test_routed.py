"""Routed tokens: work grows with the tokens, rows with the losses, and only nodes that route are planned anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import gramjd
from gramjd.engine import plan
from gramjd.engine.plan import NodePlan
from gramjd.kernels import symmetric
from gramjd.profiling.bench import routed
from tests.kernels.strategies import countable
from tests.oracle import assert_close_gramian, oracle_gramian
from tests.zoo.registry import sandbox

B, D = 6, 32
CASES: dict[str, Callable[[int], Callable[[], Tensor]]] = {
    "experts": lambda T: routed.routed(B, T, D, 3),
    "padding": lambda T: routed.padding(B, T, D),
    "graphs": lambda T: routed.graphs(B, T, D),
}


def work(losses: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """Floating-point operations of products in a Gramian, as PyTorch counts them."""
    monkeypatch.setattr(symmetric, "add_product", countable)
    with FlopCounterMode(display=False) as counter:
        gramjd.gramian(losses, backend="torch")
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CASES)
def test_twice_the_tokens_are_twice_the_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most: products of losses do not grow. Of a row per token it would be four times as much."""
    found = []
    for T in (128, 256, 512):
        with sandbox(0, torch.float32):
            found.append(work(CASES[name](T)(), monkeypatch))
    assert found[1] <= 2.5 * found[0]
    assert found[2] <= 2.5 * found[1]


def test_routes_cost_about_what_one_expert_for_all_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with sandbox(0, torch.float32):
        some, dense = routed.routed(B, 256, D, 3), routed.routed(B, 256, D, 3, dense=True)
        assert work(some(), monkeypatch) <= 1.5 * work(dense(), monkeypatch)


@pytest.mark.parametrize("name", CASES)
def test_rows_are_at_most_the_losses(name: str) -> None:
    with sandbox(1, torch.float32):
        told = gramjd.explain(CASES[name](64)())
    assert told.dense == ()
    assert told.row_bytes <= 2 * 4 * B * D
    assert any("losses" in use.rows for use in told.uses)
    for use in told.uses:
        rows = [int(word) for word in use.rows.replace("batch axis ", "").split(", ")[0].split() if word.isdigit()]
        assert max(rows) <= B, use.rows


def test_explain_plans_the_products_that_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within what padding and symmetry make of them; all of the walk's own products are left out."""
    with sandbox(2, torch.float32):
        step = routed.padding(B, 200, D)
        planned = gramjd.explain(step()).operations
        counted = work(step(), monkeypatch)
    assert planned / 2 <= counted <= 2 * planned


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    with sandbox(3, torch.float64):
        losses = CASES[name](20)()
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)


def test_other_routes_use_the_plans_of_all_layers_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose tokens go elsewhere decides anew at the nodes of experts alone."""
    plan.forget()
    decided: list[str] = []
    original = NodePlan._decided

    def noted(self: NodePlan):
        decided.append(self.view.name)
        return original(self)

    monkeypatch.setattr(NodePlan, "_decided", noted)
    with sandbox(4, torch.float64):
        model, x = routed.Routed(D, 3), torch.randn(B, 8, D)
        deep = torch.nn.Sequential(*[torch.nn.Linear(D, D), torch.nn.Tanh()] * 10)
        for _ in range(4):
            decided.clear()
            losses = model(deep(x), torch.randint(3, (B * 8,)))
            found = gramjd.gramian(losses)
    assert_close_gramian(found, oracle_gramian(losses), 1e-11)
    assert decided
    assert not [name for name in decided if "Tanh" in name]


@pytest.mark.parametrize("budget", [3_000, 30_000])
def test_a_memory_budget(budget: int) -> None:
    with sandbox(5, torch.float64):
        losses = routed.routed(B, 10, 8)()
    assert_close_gramian(gramjd.gramian(losses, memory_budget=budget), oracle_gramian(losses), 1e-11)


def test_the_probe_measures() -> None:
    with sandbox(6, torch.float32):
        found = routed.measure(routed.padding(2, 4, 8), rounds=1)
    assert found.m == 2
    assert min(found.plain, found.gramian, found.naive) > 0
    assert found.operations > 0
