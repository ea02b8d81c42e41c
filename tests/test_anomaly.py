"""Anomaly mode: a NaN is told by the node that made it and the line of the forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gramjd
from gramjd.errors import GraphError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled"),
    pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning"),
]
CALLS: dict[str, Callable[[Tensor], object]] = {
    "gramian": gramjd.gramian,
    "gradient_norms": gramjd.gradient_norms,
    "gram_backward": gramjd.gram_backward,
    "reuse": lambda losses: gramjd.gram_backward(losses, update="reuse"),
    "coordinatewise": lambda losses: gramjd.gram_backward(losses, gramjd.TrimmedMean(0)),
    "accumulator": lambda losses: gramjd.Accumulator().add(losses),
}


def root_of_nothing(model: nn.Module) -> Tensor:
    """Losses that are finite, with a derivative 0 * inf."""
    hidden = model(torch.randn(4, 3))
    bad = (hidden * 0).sqrt()  # here
    return (bad * torch.zeros(2)).sum(1) + hidden.sum(1)


@pytest.mark.parametrize("name", CALLS)
def test_names_the_node_and_the_line(name: str) -> None:
    model = nn.Linear(3, 2)
    with torch.autograd.detect_anomaly():
        losses = root_of_nothing(model)
        with pytest.raises(GraphError, match="SqrtBackward0 returned NaN for its input 0") as raised:
            CALLS[name](losses)
    assert "bad = (hidden * 0).sqrt()  # here" in str(raised.value)
    assert model.weight.grad is None


@pytest.mark.filterwarnings("ignore:Error detected in SqrtBackward0")
def test_torch_names_the_same_node() -> None:
    with torch.autograd.detect_anomaly():
        losses = root_of_nothing(nn.Linear(3, 2))
        with pytest.raises(RuntimeError, match="'SqrtBackward0' returned nan"):
            losses.sum().backward()


def test_a_forward_pass_without_the_mode() -> None:
    losses = root_of_nothing(nn.Linear(3, 2))
    with torch.autograd.detect_anomaly(), pytest.raises(GraphError, match="anomaly mode was not on in the forward"):
        gramjd.gramian(losses)


@pytest.mark.parametrize("check", [True, False])
def test_where_there_is_no_nan_nothing_changes(check: bool) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    plain = gramjd.gramian(model(x).square().sum(1))
    with torch.autograd.detect_anomaly(check_nan=check):
        watched = gramjd.gramian(model(x).square().sum(1))
    assert torch.equal(plain, watched)


def test_without_the_mode_the_error_is_the_aggregators() -> None:
    with pytest.raises(gramjd.errors.AggregatorError, match="must be finite"):
        gramjd.gram_backward(root_of_nothing(nn.Linear(3, 2)))


def test_a_custom_function_is_named() -> None:
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            return g * math.nan

    with torch.autograd.detect_anomaly(), pytest.raises(GraphError, match="BadBackward returned NaN"):
        gramjd.gramian(Bad.apply(nn.Linear(3, 2)(torch.ones(2, 3))).sum(1))
