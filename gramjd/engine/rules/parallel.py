"""Custom functions of PyTorch itself, which have nodes of Python: of parallel training, samples, compiled modules."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gramjd.engine import dtensor
from gramjd.engine._fsdp import LEAVING
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.layout import carry, diagonal_dims
from gramjd.engine.node import NodeView, Rule, Sends
from gramjd.engine.rules.vocabulary import dense_fallback, mixing
from gramjd.errors import GraphError


def each_through(node: NodeView) -> Sends:
    """Output k is input k: the node acts on its own in a backward pass only, and a walk must not run it.

    DistributedDataParallel and FSDP use such nodes to reduce gradients.
    """
    for nr, queue in node.arrivals.items():
        for cotangent in queue:
            yield node.send(nr, cotangent.layout, _values(cotangent))


def _values(cotangent: Cotangent) -> Callable[[], Tensor]:
    return lambda: cotangent.values


def to_local(node: NodeView) -> Sends:
    """A rank's piece of a DTensor: the rows are pieces as well."""

    for cotangent in node.cotangents():
        held = diagonal_dims(cotangent.layout, cotangent.shape)
        if held is None or held & _pieces(node):
            raise GraphError(
                f"{node.name}: losses of single positions, of which each rank holds some, cannot be followed: let the "
                "part of the model that is cut along the sequence end before the losses, on whole tensors"
            )

    def join(values: Tensor) -> Tensor:
        spec, given = node.handle.dtensor_spec, node.handle.grad_placements
        return dtensor.spread(values, spec.mesh, given or spec.placements, node.input(0).shape)

    yield from _across(node, join)


def from_local(node: NodeView) -> Sends:
    """A DTensor of a rank's pieces."""

    def cut(values: Tensor) -> Tensor:
        handle = node.handle
        placements = getattr(handle, "grad_placements", None) or handle.forward_input_placements
        found: Tensor = dtensor.placed(values, handle.forward_input_device_mesh, placements).to_local()
        return found

    yield from _across(node, cut)


def redistribute(node: NodeView) -> Sends:
    """The same DTensor, placed in another way."""

    def back(values: Tensor) -> Tensor:
        spec = node.handle.current_spec
        found: Tensor = dtensor.placed(values, spec.mesh, spec.placements)
        return found.to(node.input(0).dtype)

    yield from _across(node, back)


def _across(node: NodeView, change: Callable[[Tensor], Tensor]) -> Sends:
    """The same elements, of which a rank may hold a piece on one side."""
    output, target = node.output().shape, node.input(0).shape
    pieces = _pieces(node)
    for given in node.cotangents():
        cotangent = node.densified(given, pieces, "is cut over ranks along the batch axis")
        kept = diagonal_dims(cotangent.layout, output) or ()
        layout = carry(cotangent.layout, output, target, {d: d for d in kept})
        yield node.send(0, layout, _changed(change, cotangent))


def _pieces(node: NodeView) -> set[int]:
    """The dimensions of which a rank holds a piece on one side."""
    both = zip(node.output().shape, node.input(0).shape, strict=True)
    return {d for d, (here, there) in enumerate(both) if here != there}


def _changed(change: Callable[[Tensor], Tensor], cotangent: Cotangent) -> Callable[[], Tensor]:
    return lambda: change(cotangent.values)


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
    "_FromTorchTensorBackward": from_local,
    "_ToTorchTensorBackward": to_local,
    "RedistributeBackward": redistribute,
    LEAVING: each_through,
}
