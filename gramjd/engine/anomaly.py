"""Anomaly mode: a NaN that a walk meets is told by the node that made it, and by the line of the forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gramjd.engine._torch import Node
from gramjd.engine.factor import Factor
from gramjd.engine.node import Message
from gramjd.errors import GraphError


def finds_nan() -> bool:
    """Returns True within `torch.autograd.detect_anomaly` that looks for NaN."""
    return torch.is_anomaly_enabled() and torch.is_anomaly_check_nan_enabled()


def refuse_nan(node: Node, sent: Sequence[tuple[int, Message]]) -> None:
    """Raise if something that a node sends has NaN: what arrived there had none, or it would have been found before."""
    for at, message in sent:
        if any(bool(values.isnan().any()) for values in _numbers(message)):
            lines = node.metadata.get("traceback_", [])
            made = "".join(lines) if lines else "unknown, as anomaly mode was not on in the forward pass"
            raise GraphError(
                f"{node.name()} returned NaN for its input {at}. The forward pass was computed here:\n{made}"
            )


def _numbers(message: Message) -> list[Tensor]:
    tensors = message.tensors if isinstance(message, Factor) else (message.values,)
    return [values for values in tensors if values.is_floating_point() or values.is_complex()]
