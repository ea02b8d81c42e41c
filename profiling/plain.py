"""The memory of a plain step, counted on paper: the user's own forward and backward pass on tensors without numbers.

Every operation is done on fake tensors, which have shapes and storages and take no memory; after each, the bytes of the
storages that are alive are added up. What an operation takes inside itself and gives back is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gramjd.engine import _torch
from gramjd.profiling.target import Work


class PlainStep(NamedTuple):
    """Bytes of a plain step, beyond what was held before it.

    Args:
        held: parameters, buffers and all other tensors from before the step that an operation took, such as the batch.
        saved: alive once the losses are there: what the graph keeps, and the losses.
        peak: most that is alive at once, gradients included.
    """

    held: int
    saved: int
    peak: int


def plain_step(work: Work) -> PlainStep:
    """Count a plain step; where the model asks for numbers, as in `if x.sum() > 0`, by a step with numbers.

    The model is left as it was, but for what a step with numbers changes.

    Args:
        work: from `gramjd.profiling.target.build`.
    """
    try:
        with _unchanged(work.model), _torch.fake_tensors() as paper:
            return _counted(work, _Bytes(paper))
    except Exception:  # whatever stops a model on paper: if it is a fault of the model, it will show again
        return _counted(work, _Bytes())


def _counted(work: Work, count: _Bytes) -> PlainStep:
    module = [*work.model.parameters(), *work.model.buffers()] if work.model is not None else []
    parameters = list(work.parameters.values())
    for tensor in (*module, *parameters):
        count.before(tensor)
    with count:
        losses = work.vector()
        saved = count.now()
        torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
    return PlainStep(sum(size for _, size in count.held.values()), saved, count.peak)


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
        self.peak = max(self.peak, self.now())
        return out

    def before(self, tensor: Tensor) -> Tensor:
        """What an operation is given instead of a tensor; one that no operation made was there before."""
        if self.paper is not None and not _torch.is_fake(tensor):
            tensor = self.paper.from_tensor(tensor)
        address = _torch.storage_of(tensor)
        if not self._alive(address):
            self.held.setdefault(address, (tensor, tensor.untyped_storage().nbytes()))
        return tensor

    def now(self) -> int:
        """Bytes alive."""
        self.made = {address: entry for address, entry in self.made.items() if self._alive(address)}
        return sum(size for _, size in self.made.values())

    def _alive(self, address: int) -> bool:
        return address in self.made and not self.made[address][0].expired()


@contextmanager
def _unchanged(model: nn.Module | None) -> Iterator[None]:
    """Give modules back what they had: a forward pass may keep tensors, and those without numbers are of no use."""
    own = [vars(module) for module in model.modules()] if model is not None else []
    kept = [*own, *(value for names in own for value in names.values() if isinstance(value, dict))]
    before = [dict(names) for names in kept]
    try:
        yield
    finally:
        for names, was in zip(kept, before, strict=True):
            names.clear()
            names.update(was)
