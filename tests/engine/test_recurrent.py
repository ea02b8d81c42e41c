"""Fused recurrent layers keep their batch axis: float32 on a CPU is where torch fuses the LSTM."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gramjd import explain, gramian
from tests.oracle import oracle_gramian, relative_error
from tests.zoo.nodes import names_of

KINDS = {
    "plain": {},
    "two directions": {"bidirectional": True},
    "two layers": {"num_layers": 2},
    "no biases": {"bias": False},
    "batch first": {"batch_first": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_fused_lstm_is_exact_and_stays_per_sample(kind: str) -> None:
    model = nn.LSTM(6, 5, **KINDS[kind])
    outputs, (hidden, cells) = model(torch.randn(7, 4, 6, requires_grad=True))
    assert "MkldnnRnnLayerBackward0" in names_of(outputs)
    batch = 0 if model.batch_first else 1
    losses = outputs.square().mean((1 - batch, 2)) + (hidden * cells).sum((0, 2))
    assert explain(losses).dense == ()
    inputs = list(model.parameters())
    assert relative_error(gramian(losses, inputs).double(), oracle_gramian(losses, inputs)) < 1e-5
