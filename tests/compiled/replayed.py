"""Random numbers drawn once and given again as inputs of a trace, so that both can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gramjd.compiled.trace import Traced, trace

RANDOM = torch.Tag.nondeterministic_seeded


class Drawn(TorchDispatchMode):
    """Notes everything that is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if RANDOM in func.tags:
            self.found += [t.detach().clone() for t in tree_leaves(out) if isinstance(t, Tensor)]
        return out


class Given(TorchDispatchMode):
    """Gives what was drawn, in the same order, instead of drawing."""

    def __init__(self, found: Sequence[Tensor]) -> None:
        super().__init__()
        self.left = list(found)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if RANDOM not in func.tags:
            return func(*args, **(kwargs or {}))
        if func._schema.is_mutable:
            return args[0].copy_(self.left.pop(0))
        count = len(func._schema.returns)
        out = [self.left.pop(0).clone() for _ in range(count)]
        return out[0] if count == 1 else tuple(out)


def in_graph(
    build: Callable[[], Sequence[Tensor]], known: bool = True, donates: bool = True
) -> tuple[Traced, list[Tensor]]:
    """The graph of `build`, with what it draws as inputs, and these inputs.

    `known`: indices that are drawn may decide, as if they were constants.
    """
    with Drawn() as drawn:
        build()
    inputs = drawn.found

    def program(*given: Tensor) -> list[Tensor]:
        with Given(given), torch.enable_grad():
            return list(build())

    constants = [(n, t) for n, t in enumerate(inputs) if known and not t.is_floating_point() and not t.is_complex()]
    return trace(program, inputs, constants, donates=donates), inputs
