"""Which backward nodes a graph is made of."""

from __future__ import annotations

import torch

from tests.zoo.registry import Losses


def names_of(losses: Losses) -> set[str]:
    """Names of all backward nodes below the losses."""
    tensors = [losses] if isinstance(losses, torch.Tensor) else list(losses)
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return {node.name() for node in seen}
