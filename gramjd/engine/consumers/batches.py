"""Jacobians of micro-batches, kept beyond their graphs: products with those of later ones, and a common update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import _torch
from gramjd.engine.consumers.cross import add_products
from gramjd.engine.consumers.gramian import Gramian
from gramjd.engine.consumers.update import sparse_gradients
from gramjd.engine.factor import Factor
from gramjd.engine.given import GivenRows
from gramjd.engine.graph import LEAF, Edge, Graph
from gramjd.engine.hooks import on_accumulation
from gramjd.engine.layout import Layout, Owners, interned
from gramjd.engine.parameter import Jacobian
from gramjd.errors import GraphError


@dataclass
class Batch:
    """The Jacobians of one micro-batch of `m` losses by the identity of the leaf, each where it is `kept`.

    `counted`: the leaves that G is built from. What a factor holds is also seen by the user: data, activations. Their
    versions are noted, so that none of them is used after it was written to.
    """

    m: int
    kept: torch.device
    leaves: dict[int, Tensor] = field(default_factory=dict)
    counted: set[int] = field(default_factory=set)
    jacobians: dict[int, Jacobian] = field(default_factory=dict)
    _versions: list[tuple[Tensor, int]] = field(default_factory=list)
    # By what a tensor shows of a memory: several layers keep one input. The first one stands beside its copy while the
    # batch is collected, so that its address is not given to another.
    _moved: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all memory that is held: inputs of operations and cotangents."""
        return sum(self._sizes.values())

    def keep(self, leaf: Tensor, jacobian: Jacobian, counted: bool) -> None:
        """Take over the Jacobian of a leaf."""
        self.leaves[id(leaf)] = leaf
        self._versions.append((leaf, _torch.version_of(leaf)))
        if counted:
            self.counted.add(id(leaf))
        factors = [f.with_tensors([self._placed(t) for t in f.tensors]) for f in jacobian.factors]
        self.jacobians[id(leaf)] = Jacobian(jacobian.shape, factors)

    def _placed(self, tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        view = (memory.data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if view not in self._moved:
            placed = tensor if tensor.device == self.kept else tensor.detach().to(self.kept)
            self._moved[view] = placed, tensor
            self._sizes[placed.untyped_storage().data_ptr()] = placed.untyped_storage().nbytes()
            if not placed.is_inference():
                self._versions.append((placed, _torch.version_of(placed)))
        return self._moved[view][0]

    def collected(self) -> None:
        """Every Jacobian came."""
        self._moved.clear()

    def check(self) -> None:
        """Raise if something that was kept has been written to since."""
        for tensor, version in self._versions:
            if _torch.version_of(tensor) != version:
                raise GraphError(
                    f"a tensor of shape {tuple(tensor.shape)} that a micro-batch was computed from (a parameter, data, "
                    "an activation) was modified in place after it was added: call step() before the optimizer's step, "
                    "and give each micro-batch data of its own"
                )


class Meeting:
    """What one micro-batch adds: its own block of G, its products with batches that are kept, and itself."""

    def __init__(
        self, graph: Graph, m: int, home: torch.device, dtype: torch.dtype, kept: torch.device, multiplies: bool = True
    ):
        self.graph, self._home, self._multiplies = graph, home, multiplies
        self.own = Gramian(m, home, dtype)
        self.batch = Batch(m, kept)
        self.products: list[tuple[Batch, Tensor]] = []

    def meets(self, others: Sequence[Batch]) -> None:
        """These batches are multiplied with, too."""
        m, dtype = self.batch.m, self.own.dtype
        self.products = [(other, torch.zeros(other.m, m, dtype=dtype, device=self._home)) for other in others]

    def note(self, edge: Edge, jacobian: Jacobian) -> None:
        """The Jacobian of a leaf arrived."""
        leaf = self.graph.targets[edge]
        counted = edge not in self.graph.others
        if counted and self._multiplies:
            self.own.add_share(jacobian)
            for other, product in self.products:
                _multiply(product, other, leaf, jacobian)
        self.batch.keep(leaf, jacobian, counted)


class Visit:
    """A micro-batch that is computed again for its products with another one alone."""

    def __init__(self, graph: Graph, m: int, other: Batch, home: torch.device, dtype: torch.dtype):
        self.graph, self._other = graph, other
        self.product = torch.zeros(other.m, m, dtype=dtype, device=home)

    def note(self, edge: Edge, jacobian: Jacobian) -> None:
        """The Jacobian of a leaf arrived."""
        if edge not in self.graph.others:
            _multiply(self.product, self._other, self.graph.targets[edge], jacobian)


def _multiply(product: Tensor, other: Batch, leaf: Tensor, jacobian: Jacobian) -> None:
    mine = other.jacobians.get(id(leaf))
    if mine is not None and id(leaf) in other.counted:
        add_products(product, mine.to(product.device), jacobian)


def joint(batches: Sequence[Batch], leaf: Tensor) -> Jacobian:
    """The Jacobian of a leaf for the losses of all batches, one batch after the other."""
    found, start = Jacobian(tuple(leaf.shape)), 0
    for batch in batches:
        if id(leaf) in batch.counted:
            for factor in batch.jacobians[id(leaf)].factors:
                owners = np.where(factor.owners >= 0, factor.owners + start, -1)
                found.factors.append(_owned_by(factor, owners, start))
        start += batch.m
    return found


def _owned_by(factor: Factor, owners: Owners, start: int) -> Factor:
    if not isinstance(factor, GivenRows):
        return replace(factor, owners=owners)
    layout = factor.layout
    moved = np.where(layout.owners >= 0, layout.owners + start, -1)
    return replace(factor, owners=owners, layout=interned(Layout(layout.pieces, moved)))


def combined(batches: Sequence[Batch], weights: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each leaf with the sum of its `J^T w` over all batches, in float32 at least until the end."""
    leaves: Mapping[int, Tensor] = {key: leaf for batch in batches for key, leaf in batch.leaves.items()}
    found = []
    for key, leaf in leaves.items():
        total: Tensor | None = None
        for batch, w in zip(batches, weights, strict=True):
            if key not in batch.jacobians:
                continue
            part = batch.jacobians[key].to(w.device).combined(w)
            part = part.to(torch.promote_types(part.dtype, torch.float32))
            total = part if total is None else total + part
        assert total is not None, "every leaf is one of some batch"
        found.append((leaf, total.to(leaf.dtype).reshape(leaf.shape)))
    return found


def cannot_keep(graph: Graph) -> str | None:
    """Why Jacobians cannot make the update of a graph in place of a backward pass; None if they can."""
    if graph.hooks.edges or graph.hooks.nodes:
        return "hooks on tensors see one gradient in a backward pass and each row in a walk"
    if on_accumulation(graph):
        return "a parameter has a hook on the node that accumulates its gradient, as in DistributedDataParallel"
    if sparse_gradients(graph):
        return "an embedding asks for a sparse gradient"
    if any(graph.names.get(node) != LEAF for node, _ in graph.targets):
        return "an input is computed from others"
    return None


def bytes_of(jacobians: Sequence[Jacobian]) -> int:
    """Bytes that planned Jacobians hold, with the inputs of operations: an upper limit, as several may share one."""
    return sum(t.numel() * t.dtype.itemsize for j in jacobians for f in j.factors for t in f.tensors)
