"""What a node does, without numbers: the operations that it applies to a cotangent that has a shape and no memory.

Some nodes show none of what they saved, such as those of in-place edits. Their operations tell: how the part lies in
its base, where an operand begins in the cotangent, and whether all of them work element by element. Operations on
other tensors run as they are, so that a checkpointed segment that is read on the way is recomputed as it should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gramjd.engine._torch import TorchDispatchMode, tree_leaves, tree_map_only, untraced


class Step(NamedTuple):
    """An operation with the tensors that it was given and made."""

    operation: Any
    given: tuple[Tensor, ...]
    made: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        """Such as `aten::mul`."""
        found: str = self.operation.name()
        return found.partition(".")[0]


class Watched(NamedTuple):
    """The cotangent, the operations in their order, the result for each edge; all on the meta device."""

    cotangent: Tensor
    steps: list[Step]
    results: tuple[Tensor | None, ...]


class _Watching(TorchDispatchMode):
    """Notes all operations; those on what came from the cotangent get meta tensors instead of others."""

    def __init__(self, cotangent: Tensor) -> None:
        super().__init__()
        self.ours = {id(cotangent)}
        self.steps: list[Step] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = tuple(t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        ours = any(id(t) in self.ours for t in given)
        if ours:
            if kwargs.get("device") is not None:
                kwargs["device"] = torch.device("meta")
            with untraced():
                args, kwargs = tree_map_only(Tensor, self._bare, (args, kwargs))
                out = func(*args, **kwargs)
        else:
            out = func(*args, **kwargs)
        made = tuple(t for t in tree_leaves(out) if isinstance(t, Tensor))
        if ours:
            self.ours.update(id(t) for t in made)
        # What is noted stays alive, so that no other tensor can have its id.
        self.steps.append(Step(func, given, made))
        return out

    def _bare(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self.ours:
            return tensor
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def watched(node: Any, shape: Sequence[int], dtype: torch.dtype) -> Watched | None:
    """What a node of C++ with one output does to a row-major cotangent; None if it cannot be told."""
    with untraced():
        cotangent = torch.empty(tuple(shape), dtype=dtype, device="meta")
    mode = _Watching(cotangent)
    try:
        with torch.no_grad(), mode:
            results = node(cotangent)
    except (RuntimeError, NotImplementedError):
        return None
    return Watched(cotangent, mode.steps, results if isinstance(results, tuple) else (results,))
