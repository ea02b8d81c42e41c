"""The memory of a step, counted on paper: the user's own forward pass, a walk and a backward pass without numbers.

Every operation is done on fake tensors, which have shapes and storages and take no memory; after each, the bytes of the
storages that are alive are added up. What an operation takes inside itself and gives back is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gramjd.compiled.held import unchanged
from gramjd.engine import _torch, compute
from gramjd.engine.consumers.gramian import Gramian
from gramjd.engine.factor import Gathered
from gramjd.engine.graph import Edge
from gramjd.engine.memory import NO_LIMITS, Meter
from gramjd.engine.parameter import Jacobian
from gramjd.engine.walk import walked
from gramjd.kernels import cost
from gramjd.losses import as_losses
from gramjd.profiling.target import Work


class Counted(NamedTuple):
    """Bytes of a step, beyond what was held before it.

    Args:
        held: parameters, buffers and all other tensors from before the step that an operation took, such as the batch.
        saved: alive once the losses are there: what the graph keeps, and the losses.
        walk: most that the walk takes beyond `saved`: cotangents, factors, temporaries and the Gramian.
        gramian: the Gramian alone.
        plain: most that is alive at once in a plain step, gradients included.
    """

    held: int
    saved: int
    walk: int
    gramian: int
    plain: int


def counted_step(work: Work) -> Counted:
    """Count a step; where the model asks for numbers, as in `if x.sum() > 0`, by a step with numbers.

    The model is left as it was, but for what a step with numbers changes.

    Args:
        work: from `gramjd.profiling.target.build`.
    """
    try:
        modules = list(work.model.modules()) if work.model is not None else []
        with unchanged(modules), _torch.fake_tensors() as paper:
            return _counted(work, _Bytes(paper))
    except Exception:  # whatever stops a model on paper: if it is a fault of the model, it will show again
        return _counted(work, _Bytes())


def _counted(work: Work, count: _Bytes) -> Counted:
    module = [*work.model.parameters(), *work.model.buffers()] if work.model is not None else []
    parameters = list(work.parameters.values())
    for tensor in (*module, *parameters):
        count.before(tensor)
    with count:
        losses = as_losses(work.losses(), finite=False)
        saved, held = count.now(), sum(size for _, size in count.held.values())
        forward, count.peak = count.peak, saved
        gramian = _walked(losses, parameters, count)
        walk, count.peak = count.peak - saved, forward
        mean = [loss.new_full(loss.shape, 1 / work.m) for loss in losses]
        torch.autograd.grad(losses, parameters, mean, allow_unused=True)
    return Counted(held, saved, walk, gramian, count.peak)


def _walked(losses: Sequence[Tensor], parameters: Sequence[Tensor], count: _Bytes) -> int:
    """Walk from the losses; returns the bytes of the Gramian."""
    graph = compute.read(losses, parameters, missing_ok=True)
    m = sum(loss.numel() for loss in losses)
    total = Gramian(m, losses[0].device, compute.accumulation_dtype(losses, graph, None))

    def add(edge: Edge, jacobian: Jacobian) -> None:
        for factor in jacobian.factors:
            if isinstance(factor, Gathered):  # its work depends on which ids there are
                count.look((2 * cost.chunk() + factor.owners.size**2) * total.dtype.itemsize)
        known = [f for f in jacobian.factors if not isinstance(f, Gathered)]
        if known:
            total.add_share(Jacobian(jacobian.shape, known))

    walked(graph, losses, add, Meter(NO_LIMITS), keeps=False)
    total.finished()
    return total.value.nbytes


class _Bytes(_torch.TorchDispatchMode):
    """Bytes of the storages that operations make, as long as they are alive; on `paper` if there is any."""

    def __init__(self, paper: Any = None) -> None:
        super().__init__()
        self.paper = paper
        self.peak = 0
        self.held: dict[int, tuple[Tensor, int]] = {}  # the tensors, too: no other may get their address
        self.made: dict[int, tuple[_torch.StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = _torch.tree_map_only(Tensor, self.before, (args, kwargs or {}))
        out = func(*args, **kwargs)
        for tensor in (leaf for leaf in _torch.tree_leaves(out) if isinstance(leaf, Tensor)):
            address = _torch.storage_of(tensor)
            if address not in self.held and not self._alive(address):
                storage = tensor.untyped_storage()
                self.made[address] = _torch.StorageWeakRef(storage), storage.nbytes()
        self.look(0)
        return out

    def before(self, tensor: Tensor) -> Tensor:
        """What an operation is given instead of a tensor; one that no operation made was there before."""
        if self.paper is not None and not _torch.is_fake(tensor):
            tensor = self.paper.from_tensor(tensor)
        address = _torch.storage_of(tensor)
        if not self._alive(address):
            self.held.setdefault(address, (tensor, tensor.untyped_storage().nbytes()))
        return tensor

    def look(self, extra: int) -> None:
        """Count what is alive, and bytes of which no operation tells."""
        self.peak = max(self.peak, self.now() + extra)

    def now(self) -> int:
        """Bytes alive."""
        self.made = {address: entry for address, entry in self.made.items() if self._alive(address)}
        return sum(size for _, size in self.made.values())

    def _alive(self, address: int) -> bool:
        return address in self.made and not self.made[address][0].expired()
