"""Fused recurrent layers: their nodes give no gradient per time step, so the layer is unrolled and walked instead."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from gramjd.engine.node import NodeView, Operand, Rule, SendGraph, Sends
from gramjd.engine.rules.vocabulary import dense_fallback, named

# ATen's number of an LSTM among the modes of a fused recurrent layer.
LSTM = 2
_SAVED = ("input", "weight0", "weight1", "weight2", "weight3", "hx_", "cx_")


def lstm(node: NodeView) -> Sends:
    """One direction of one LSTM layer, [T, B, i] to [T, B, h] (`batch_first` or not); packed sequences go dense."""
    if node.integer("mode") != LSTM or len(node.saved("batch_sizes")):
        return dense_fallback(node)
    return _unrolled_instead(node)


def _unrolled_instead(node: NodeView) -> Sends:
    biases = bool(node.saved("has_biases"))
    operands = [_operand(node, name) if biases or name not in ("weight2", "weight3") else None for name in _SAVED]
    # Without biases the node holds other weights in their places.
    yield SendGraph(tuple(operands), partial(_unrolled, reverse=bool(node.saved("reverse"))))


def _operand(node: NodeView, name: str) -> Operand:
    like: Tensor = node.saved(name)
    return Operand(tuple(like.shape), like.dtype, lambda: node.saved(name).detach())


def _unrolled(operands: Sequence[Any], reverse: bool) -> list[Tensor]:
    x, w_ih, w_hh, b_ih, b_hh, h0, c0 = operands
    h, c = (state.reshape(x.shape[1], -1) for state in (h0, c0))
    gates = linear(x, w_ih, b_ih).unbind(0)
    out = []
    for step in reversed(gates) if reverse else gates:
        i, f, g, o = (step + linear(h, w_hh, b_hh)).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return [torch.stack(out[::-1] if reverse else out), h.view(h0.shape), c.view(c0.shape)]


RULES: dict[str, Rule] = named("MkldnnRnnLayer", lstm)
