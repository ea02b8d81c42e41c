"""Fused recurrent layers: the fused node gives no gradient a time step, so the layer is unrolled and walked instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from gramjd.engine.node import NodeView
from gramjd.engine.rules.vocabulary import Rule, named, opaque

# ATen's number of an LSTM among the modes of a fused recurrent layer.
LSTM = 2


def lstm(visit: NodeView) -> None:
    """One direction of one LSTM layer, [T, B, i] to [T, B, h] (`batch_first` or not); packed sequences go dense."""
    if visit.integer("mode") != LSTM or len(visit.saved("batch_sizes")):
        opaque(visit)
        return
    names = ("input", "weight0", "weight1", "weight2", "weight3", "hx_", "cx_")
    given = [visit.saved(name).detach() for name in names]
    with torch.enable_grad():
        operands: list[Tensor | None] = [t.requires_grad_() if visit.wants(e) else t for e, t in enumerate(given)]
        if not visit.saved("has_biases"):
            # Without biases the node holds other weights in their places.
            operands[3] = operands[4] = None
        outputs = _unrolled(operands, bool(visit.saved("reverse")))
    visit.walk_instead(outputs, operands)


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
