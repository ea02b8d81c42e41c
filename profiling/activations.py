"""What a graph keeps alive: the tensors that its nodes saved in the forward pass, by storage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from gramjd.engine import _torch
from gramjd.engine.graph import Node

Storages = dict[int, int]  # a storage's address to its bytes


def all_nodes(losses: Iterable[Tensor]) -> list[Node]:
    """Every node that the losses reach."""
    stack: list[Any] = [loss.grad_fn for loss in losses]
    seen: dict[Node, None] = {}
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen[node] = None
            stack.extend(child for child, _ in node.next_functions)
    return list(seen)


def saved_tensors(node: Node) -> Iterator[Tensor]:
    """The tensors that a node saved."""
    if _torch.is_python(node):
        yield from (t for t in node.saved_tensors if isinstance(t, Tensor))
        return
    kind: Any = type(node)
    for name in _torch.saved_names(kind):
        value = _torch.saved(node, name)
        yield from (t for t in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(t, Tensor))


def storage_of(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes of what a tensor's numbers lie in."""
    return _torch.storage_of(tensor), tensor.untyped_storage().nbytes()


def saved_by(nodes: Iterable[Node], held: Mapping[int, int]) -> dict[Node, Storages]:
    """For each node the storages that it keeps, but for those that were `held` before the step."""
    found: dict[Node, Storages] = {}
    for node in nodes:
        mine = dict(storage_of(t) for t in saved_tensors(node))
        found[node] = {address: size for address, size in mine.items() if address not in held}
    return found


def constants(nodes: Iterable[Node]) -> list[Tensor]:
    """Saved tensors that nothing differentiable made: batches, masks, indices."""
    return [t for node in nodes for t in saved_tensors(node) if t.is_leaf and not t.requires_grad]
