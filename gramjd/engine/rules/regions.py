"""Compiled regions: one node stands for many layers, which are computed anew from its inputs, and walked instead."""

from __future__ import annotations

from gramjd.engine.node import NodeView, Operand, Rule, SendGraph, Sends


def region(node: NodeView) -> Sends:
    """A node that saved its inputs; its `layers` are a function from them to its outputs, made of ordinary layers."""
    operands = [Operand(tuple(t.shape), t.dtype, t.detach) for t in node.saved_tensors]
    yield SendGraph(tuple(operands), node.handle.layers, numbers=True)


RULES: dict[str, Rule] = {"RegionBackward": region}
