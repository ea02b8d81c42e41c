"""A memory budget: the same Gramian in blocks of losses, within the bytes allowed, or an error beforehand."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gramjd import explain, gram_backward, gramian
from gramjd.engine import compute
from gramjd.errors import BudgetError, DenseRowsWarning
from gramjd.profiling.memory import peak_bytes
from tests.oracle import oracle_gramian, relative_error
from tests.small import F64

quiet = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
M, WIDTH = 16, 512


class Cube(torch.autograd.Function):
    """x^3, which no rule knows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class CubeNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width, dtype=F64), nn.Linear(width, 3, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Cube.apply(self.first(x)))


def batch_norm(width: int) -> nn.Module:
    layers = nn.Linear(5, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3)
    return nn.Sequential(*layers).to(F64)


MODELS: dict[str, Callable[[int], nn.Module]] = {"batch norm": batch_norm, "custom function": CubeNet}


def losses_of(name: str, width: int = WIDTH, m: int = M) -> Tensor:
    torch.manual_seed(0)
    return MODELS[name](width)(torch.randn(m, 5, dtype=F64)).square().sum(1)


def needed(losses: Tensor, count: int) -> int:
    """Bytes of stacked rows for the first `count` losses."""
    mask = np.arange(losses.numel()) < count
    graph = compute.read([losses], None)
    return compute.dense_peak(graph, [losses], mask)


@quiet
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("blocks", [2, 4, 8, 16])
def test_blocks_of_losses_give_the_same_gramian(name: str, blocks: int) -> None:
    losses = losses_of(name, 32)
    budget = needed(losses, 2 * M // blocks) if blocks > 2 else explain(losses).row_bytes - 1
    expected = gramian(losses)
    assert relative_error(gramian(losses, memory_budget=budget), expected) < 1e-12
    assert relative_error(expected, oracle_gramian(losses)) < 1e-12


@quiet
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("m", [5, 7, 13])
def test_numbers_of_losses_that_do_not_divide(name: str, m: int) -> None:
    losses = losses_of(name, 16, m)
    for count in (2, m // 2, m - 1):
        got = gramian(losses, memory_budget=needed(losses, count))
        assert relative_error(got, oracle_gramian(losses)) < 1e-12


@quiet
@pytest.mark.parametrize("name", MODELS)
def test_peak_falls_with_the_budget(name: str) -> None:
    losses = losses_of(name)
    gramian(losses)
    whole = explain(losses).row_bytes
    budgets = [whole, needed(losses, M // 2), needed(losses, M // 4), needed(losses, M // 8)]
    peaks = [counted(lambda b=b: gramian(losses, memory_budget=b)) for b in budgets]
    assert all(later < 0.75 * earlier for earlier, later in pairwise(peaks))
    plain = M * WIDTH * 8
    assert all(peak <= 4 * budget + 8 * plain for peak, budget in zip(peaks, budgets, strict=True))


def counted(work: Callable[[], object]) -> int:
    """Peak bytes, with no help from the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        return peak_bytes(work)
    finally:
        gc.enable()


@quiet
@pytest.mark.parametrize("name", MODELS)
def test_gram_backward_keeps_the_budget(name: str) -> None:
    losses = losses_of(name, 32)
    step = gram_backward(losses, memory_budget=needed(losses, 4))
    assert relative_error(step.gramian, oracle_gramian(losses_of(name, 32))) < 1e-12


def funnel(dtype: torch.dtype = torch.float32) -> tuple[Tensor, int]:
    """Losses whose rows become dense while narrow, and the bytes that they take at the wide layer below."""
    layers = nn.Linear(5, 2048), nn.Tanh(), nn.Linear(2048, 4), nn.BatchNorm1d(4)
    losses = nn.Sequential(*layers).to(dtype)(torch.randn(M, 5, dtype=dtype)).square().sum(1)
    return losses, M * M * 2048 * dtype.itemsize


@quiet
def test_rows_that_become_wider_are_planned() -> None:
    losses, wide = funnel()
    assert explain(losses).row_bytes >= wide


@quiet
def test_rows_that_become_wider_keep_the_budget() -> None:
    losses, wide = funnel()
    gramian(losses)
    assert counted(lambda: gramian(losses, memory_budget=wide // 4)) <= 4 * (wide // 4) + 8 * M * 2048 * 4


@quiet
def test_rows_of_deeper_layers_are_given_back() -> None:
    """What a budget must hold does not grow with the depth of a network."""

    def row_bytes(depth: int) -> int:
        layers = [module for _ in range(depth) for module in (nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Tanh())]
        return explain(nn.Sequential(*layers)(torch.randn(8, 32)).square().sum(1)).row_bytes

    assert row_bytes(8) == row_bytes(3) <= 4 * 8 * 8 * 32 * 4


@quiet
def test_layers_that_merge_give_their_rows_back() -> None:
    """Blocks one after the other, each with two branches that become dense and are added."""

    def row_bytes(depth: int) -> int:
        x = torch.randn(8, 32)
        for _ in range(depth):
            x = nn.BatchNorm1d(32)(nn.Linear(32, 32)(x)) + nn.BatchNorm1d(32)(nn.Linear(32, 32)(x)).tanh()
        return explain(x.square().sum(1)).row_bytes

    assert row_bytes(6) == row_bytes(3)


@quiet
def test_a_budget_that_suffices_changes_nothing() -> None:
    losses = losses_of("batch norm")
    assert torch.equal(gramian(losses, memory_budget=explain(losses).row_bytes), gramian(losses))


def test_a_batch_axis_needs_no_budget() -> None:
    losses = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 3))(torch.randn(8, 5)).square().sum(1)
    assert torch.equal(gramian(losses, memory_budget=0), gramian(losses))


@quiet
@pytest.mark.parametrize("name", MODELS)
def test_impossible_budget_is_refused_before_anything_large(name: str) -> None:
    losses = losses_of(name)
    pair = needed(losses, 2)

    def refused() -> None:
        with pytest.raises(BudgetError, match=f"raise it to at least {pair} bytes"):
            gramian(losses, memory_budget=pair - 1)

    refused()
    assert peak_bytes(refused) < explain(losses).row_bytes / 4
    assert relative_error(gramian(losses, memory_budget=pair), oracle_gramian(losses)) < 1e-12


@quiet
def test_a_budget_for_one_loss_alone() -> None:
    """A single loss cannot be cut further."""
    losses = losses_of("batch norm", 32, 8)[0]
    with pytest.raises(BudgetError, match="raise it to at least"):
        gramian(losses.expand(2), memory_budget=1)


@pytest.mark.parametrize("name", MODELS)
def test_one_warning_names_the_operation(name: str) -> None:
    losses = losses_of(name, 16)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        gramian(losses)
    assert [w.category for w in seen] == [DenseRowsWarning]
    operation = {"batch norm": "NativeBatchNormBackward0", "custom function": "CubeBackward"}[name]
    assert str(seen[0].message).startswith(operation)
    assert "explain" in str(seen[0].message)
    assert seen[0].filename == __file__


def test_one_warning_for_two_layers_of_a_kind() -> None:
    model = nn.Sequential(*(nn.Linear(5, 5), nn.BatchNorm1d(5)) * 3)
    losses = model(torch.randn(4, 5)).square().sum(1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        gram_backward(losses)
    assert len(seen) == 1
    assert seen[0].filename == __file__


def test_one_warning_in_blocks() -> None:
    losses = losses_of("batch norm", 16)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        gramian(losses, memory_budget=needed(losses, 4))
    assert len(seen) == 1
