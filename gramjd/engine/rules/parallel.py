"""Custom functions of PyTorch itself, which have nodes of Python: of parallel training, samples, compiled modules."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gramjd.engine.cotangent import Cotangent
from gramjd.engine.node import NodeView, Rule, Sends
from gramjd.engine.rules.vocabulary import dense_fallback, mixing


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


def compiled(node: NodeView) -> Sends:
    """A module that torch.compile made one node of."""
    return dense_fallback(
        node,
        'is a module that torch.compile compiled, whose layers cannot be seen (torch.compile(model, backend="gramjd") '
        "keeps them visible)",
    )


RULES: dict[str, Rule] = {
    "CompiledFunctionBackward": compiled,
    "_DDPSinkBackward": each_through,
    "_DirichletBackward": dirichlet,
}
