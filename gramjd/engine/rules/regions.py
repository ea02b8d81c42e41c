"""Compiled regions: one node stands for many layers, which are computed anew from its inputs, and walked instead."""

from __future__ import annotations

from gramjd.engine.node import NodeView, Operand, Rule, SendGraph, Sends


def region(node: NodeView) -> Sends:
    """A node that saved its inputs; its `layers` are a function from them to its outputs, made of ordinary layers."""
    # With numbers in a plan, too: what layers make for themselves lies on their device.
    operands = [Operand(tuple(t.shape), t.dtype, t.detach, is_ids=True) for t in node.saved_tensors]
    yield SendGraph(tuple(operands), node.handle.layers)


RULES: dict[str, Rule] = {"RegionBackward": region}
