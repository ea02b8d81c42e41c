"""Custom functions of PyTorch itself, which have nodes of Python: those of parallel training, and a distribution's."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gramjd.engine.cotangent import Cotangent
from gramjd.engine.node import NodeView, Rule, Sends
from gramjd.engine.rules.vocabulary import mixing


def each_through(node: NodeView) -> Sends:
    """Output k is input k: the node acts on its own in a backward pass only, and a walk must not run it.

    DistributedDataParallel uses it to begin or to finish the reduction of gradients.
    """
    for nr, queue in node.arrivals.items():
        for cotangent in queue:
            yield node.send(nr, cotangent.layout, _values(cotangent))


def _values(cotangent: Cotangent) -> Callable[[], Tensor]:
    return lambda: cotangent.values


def dirichlet(node: NodeView) -> Sends:
    """Samples of a Dirichlet distribution: the last dimension is mixed."""
    return mixing(lambda v: [len(v.output().shape) - 1])(node)


RULES: dict[str, Rule] = {"_DDPSinkBackward": each_through, "_DirichletBackward": dirichlet}
