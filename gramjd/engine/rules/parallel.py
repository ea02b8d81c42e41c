"""Nodes that PyTorch's own parallel training puts into a graph."""

from __future__ import annotations

from gramjd.engine.node import NodeView
from gramjd.engine.rules.vocabulary import Rule


def each_through(visit: NodeView) -> None:
    """Output k is input k: the node acts on its own in a backward pass only, and a walk must not run it.

    DistributedDataParallel uses it to begin or to finish the reduction of gradients.
    """
    for nr, groups in visit.arrivals.items():
        for group in groups:
            visit.send(nr, group.layout, group.values)


RULES: dict[str, Rule] = {"_DDPSinkBackward": each_through}
