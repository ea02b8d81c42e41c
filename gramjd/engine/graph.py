"""Reading the autograd graph: which nodes the losses reach, in which order they may run, which lead to a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from gramjd.engine import _fsdp, _torch, dtensor
from gramjd.engine._torch import Node
from gramjd.engine.sharding import Sharded
from gramjd.errors import GraphError, InputError

Edge = tuple[Node, int]

LEAF = "torch::autograd::AccumulateGrad"
# For parameters that PyTorch's own parallel training has spread over processes.
NOT_SHARDED = "use DistributedDataParallel, or a module that is not sharded"
FSDP = (
    "the model is sharded by FSDP in a way that a walk cannot follow: shard it by "
    f"torch.distributed.fsdp.fully_shard and call gram_backward or gramian; else {NOT_SHARDED}"
)
SPREAD = (
    "the model is spread over processes, by FSDP or by tensor parallelism, where gram_backward and gramian alone can "
    f"follow: call one of them; else {NOT_SHARDED}"
)
# Of DistributedDataParallel where it waits for a backward pass of its own after each forward pass.
SINK = "_DDPSinkBackward"
WAITS = (
    "the losses were computed through a DistributedDataParallel wrapper with unused parameters or a static graph, "
    "which waits for a backward pass of its own: call the module itself (`wrapper.module`)"
)
REFUSED = {
    "BackwardHookFunctionBackward": "a module has a full backward hook (Module.register_full_backward_hook), which "
    "pairs gradients of its inputs and outputs and cannot follow stacked rows: remove it, or put hooks on tensors "
    "(Tensor.register_hook)",
    "CheckpointFunctionBackward": "a segment is checkpointed with use_reentrant=True, which hides its parameters from "
    "the graph: use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)",
}
PRODUCTS = {"AddmmBackward0", "MmBackward0", "BmmBackward0", "BaddbmmBackward0", "ConvolutionBackward0", "MulBackward0"}


class Metadata(NamedTuple):
    """Shape, dtype and device of one output of a node, as the autograd engine checks them."""

    shape: tuple[int, ...]
    dtype: Any
    device: Any


def metadata_of(node: Node, given: Any) -> Metadata:
    """What the engine knows of an output. Raises GraphError for a nested tensor."""
    if given.is_nested_tensor:
        raise GraphError(
            f"{node.name()} produces a nested tensor, which cannot be walked: use a padded tensor and a mask"
        )
    return Metadata(tuple(given.shape), given.dtype, given.device)


class Selected(list[Tensor]):
    """Inputs that were asked for. `optional`: those that no loss reaches are left out, as for a module's parameters."""

    optional = False


@dataclass
class Graph:
    """The part of the autograd graph between the losses and the inputs of interest."""

    roots: list[Edge]
    targets: dict[Edge, Tensor]
    # In the order in which they were found; with the places of arguments that need no gradient, (None, 0).
    edges: dict[Node, tuple[Any, ...]]
    names: dict[Node, str]
    # Leaves that are no parameters, where parameters are the inputs because none were named.
    others: dict[Edge, Tensor] = field(default_factory=dict)
    hooks: Any = None
    # What of it is sharded over processes.
    sharded: Sharded | None = None
    # The mesh that tensors of the graph are spread over, as DTensors.
    mesh: Any = None
    # A `Structure`: see there.
    structure: Any = None
    # What nodes do, for those that had to be watched to find out.
    watched: dict[Node, Any] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> list[Node]:
        """All nodes, in the order that their structure numbers them in."""
        return list(self.edges)

    @cached_property
    def number(self) -> dict[Node, int]:
        """The number of each node."""
        return {node: n for n, node in enumerate(self.edges)}

    @property
    def spread(self) -> bool:
        """True if a part of it is spread over processes."""
        return self.sharded is not None or self.mesh is not None

    @property
    def visited(self) -> list[Node]:
        """The nodes that lead to an input, in the order of a walk."""
        return [self.nodes[n] for n in self.structure.order]

    @cached_property
    def children(self) -> dict[Node, tuple[Edge, ...]]:
        """The edges of each node that lead somewhere."""
        return {node: tuple([e for e in edges if e[0] is not None]) for node, edges in self.edges.items()}

    @cached_property
    def leaves(self) -> dict[Edge, Tensor]:
        """All leaves that the losses reach, inputs or not."""
        return {(node, 0): node.variable for node, name in self.names.items() if name == LEAF}

    @cached_property
    def used(self) -> dict[Node, list[int]]:
        """The outputs of each node that something in the graph was computed from, or that are losses."""
        found: dict[Node, set[int]] = {}
        for edges in (self.roots, *self.children.values()):
            for node, nr in edges:
                found.setdefault(node, set()).add(nr)
        return {node: sorted(outputs) for node, outputs in found.items()}

    @property
    def selective(self) -> bool:
        """True if a part of it can be gone through once only, being under a selective checkpoint."""
        return any(_torch.in_selective_checkpoint(node) for node in self.edges)

    def metadata(self, node: Node) -> list[Metadata]:
        """One entry per output of the node."""
        return [metadata_of(node, m) for m in _torch.outputs_of(node)]


def edge_of(tensor: Tensor) -> Edge:
    """The graph edge at which a tensor's gradient arrives."""
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def several_processes() -> bool:
    """Returns True if this process is one of a group of several."""
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def read(losses: Sequence[Tensor], inputs: Sequence[Tensor] | None, missing_ok: bool = False) -> Graph:
    """Walk the graph from the losses, and find the inputs."""
    roots = [edge_of(loss) for loss in losses]
    edges: dict[Node, tuple[Any, ...]] = {}
    names: dict[Node, str] = {}
    stack = [node for node, _ in reversed(roots)]
    while stack:
        node = stack.pop()
        if node in edges:
            continue
        name = names[node] = node.name()
        if name in REFUSED:
            raise GraphError(f"{name}: {REFUSED[name]}")
        edges[node] = node.next_functions
        stack.extend([child for child, _ in edges[node] if child is not None and child not in edges])
    graph = Graph(roots, {}, edges, names)
    if _fsdp.loaded():
        graph.sharded = Sharded.of(list(graph.leaves.values()))
        if graph.sharded is not None and inputs is not None:
            inputs = graph.sharded.leaves_for(inputs)
    graph.targets, graph.others = _by_default(graph) if inputs is None else (chosen(graph, inputs, missing_ok), {})
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        graph.mesh = dtensor.mesh_of(list(graph.leaves.values()))
        for tensor in graph.targets.values():
            _refuse_freed(graph, tensor)
    return graph


def _by_default(graph: Graph) -> tuple[dict[Edge, Tensor], dict[Edge, Tensor]]:
    """The parameters and the other leaves; all leaves and none where there is no parameter."""
    targets: dict[Edge, Tensor] = {}
    others: dict[Edge, Tensor] = {}
    for edge, leaf in graph.leaves.items():
        trained = type(leaf) is torch.nn.Parameter or isinstance(leaf, torch.nn.Parameter)  # the first is quicker
        (targets if trained else others)[edge] = leaf
    return (targets, others) if targets else (others, {})


def chosen(graph: Graph, inputs: Sequence[Tensor], missing_ok: bool = False) -> dict[Edge, Tensor]:
    """The inputs that were asked for. Raises InputError for one that no loss reaches, unless `missing_ok`."""
    targets = {edge_of(tensor): tensor for tensor in inputs}
    reached = {edge: tensor for edge, tensor in targets.items() if edge[0] in graph.edges}
    if missing_ok or len(reached) == len(targets):
        return targets
    if not isinstance(inputs, Selected) or not inputs.optional:
        place = next(n for n, edge in enumerate(targets) if edge not in reached)
        raise InputError(
            f"input {place} (shape {tuple(inputs[place].shape)}) is not reached by any loss: remove it from `inputs`, "
            "or compute the losses from it"
        )
    if not reached:
        raise InputError("no loss reaches any parameter of the module: compute the losses from it, or leave it out")
    return reached


def _refuse_freed(graph: Graph, tensor: Tensor) -> None:
    held = tensor.layout == torch.strided and tensor.numel() > 0 and not tensor.is_meta
    gathered = graph.sharded is not None and id(tensor) in graph.sharded.shards
    if held and not gathered and not tensor.untyped_storage().nbytes():
        raise GraphError(f"a parameter of shape {tuple(tensor.shape)} has no memory: {FSDP}")
