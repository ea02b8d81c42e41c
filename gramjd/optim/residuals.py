"""What a closure returns: residuals, in blocks that may have names and weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gramjd.errors import InputError, LossError
from gramjd.losses import as_losses

Blocks = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
Closure = Callable[[], Blocks]
Weight = float | Tensor
Weights = Mapping[str, Weight] | Sequence[Weight] | None


@dataclass(frozen=True)
class Residuals:
    """Residuals with their graph.

    Args:
        parts: the blocks that are not empty, each of any shape, with their graph.
        values: `sqrt(weight) r`, [m], detached, in float64: the loss is half of their squared length.
        roots: `sqrt(weight)`, [m], in float64; None where all weights are one.
        sizes: name (or place) of each block and its number of residuals.
    """

    parts: list[Tensor]
    values: Tensor
    roots: Tensor | None
    sizes: tuple[tuple[Hashable, int], ...]

    @property
    def loss(self) -> float:
        """`1/2 sum_i weight_i r_i^2`."""
        return 0.5 * float(self.values @ self.values)

    @property
    def eps(self) -> float:
        """The rounding of the least precise block."""
        return max(torch.finfo(part.dtype).eps for part in self.parts)

    def pulled_back(self, w: Tensor) -> list[Tensor]:
        """For each block what multiplies its gradients in `J^T w`, w [m] between weighted residuals."""
        weights = w if self.roots is None else w * self.roots
        parts = weights.split([part.numel() for part in self.parts])
        return [v.to(part.dtype).view(part.shape) for v, part in zip(parts, self.parts, strict=True)]


def evaluate(closure: Closure, weights: Weights, check: bool = True) -> Residuals:
    """Call the closure, with gradients enabled.

    Args:
        closure: returns a tensor, a sequence of tensors, or a mapping from names to tensors.
        weights: per block a number or a tensor that can be expanded to its shape, 0 or more; None for ones.
        check: True to raise for residuals that cannot be differentiated or are not finite.

    Raises:
        LossError: no function, no residuals, one number without a dimension, or what `gramian` does not take.
        InputError: weights that do not belong to the blocks.
    """
    if not callable(closure):
        got = type(closure).__name__
        raise LossError(f"step got a {got}; expected the function that returns the residuals, not what it returns")
    with torch.enable_grad():
        blocks = closure()
    named = _named(blocks)
    if check:
        as_losses(list(named.values()))
    parts = [block for block in named.values() if block.numel()]
    roots = None if weights is None else _roots(named, weights)
    flat = torch.cat([part.detach().reshape(-1).double() for part in parts])
    sizes = tuple((name, block.numel()) for name, block in named.items())
    return Residuals(parts, flat if roots is None else flat * roots, roots, sizes)


def _named(blocks: Blocks) -> dict[Hashable, Tensor]:
    """The blocks by name, or by place."""
    if blocks is None:
        raise LossError("the closure returned None; expected residuals: end it with `return residuals`")
    if isinstance(blocks, Tensor):
        if not blocks.ndim:
            raise LossError(
                "the closure returned one number; expected the residuals themselves, with their signs, and not the sum"
                " of their squares: a tensor [m], several in a list, or by name. A single residual is `r[None]`"
            )
        return {0: blocks}
    if isinstance(blocks, Mapping):
        found: dict[Any, Tensor] = dict(blocks)
    elif isinstance(blocks, Sequence) and not isinstance(blocks, str | bytes):
        found = dict(enumerate(blocks))
    else:
        raise LossError(
            f"the closure returned a {type(blocks).__name__}; expected residuals: a tensor, several of them in a list,"
            " or a dictionary from names to tensors"
        )
    for name, block in found.items():
        if not isinstance(block, Tensor):
            raise LossError(f"block {name!r} of the residuals is a {type(block).__name__}; expected a tensor")
    return found


def _roots(named: Mapping[Hashable, Tensor], weights: Mapping[str, Weight] | Sequence[Weight]) -> Tensor:
    """The root of each residual's weight, [m]."""
    if isinstance(weights, int | float):
        raise InputError(f"weights is {weights!r}; expected one per block: a dictionary for a dictionary, else a list")
    given: dict[Any, Weight] = dict(weights) if isinstance(weights, Mapping) else dict(enumerate(weights))
    if set(given) != set(named):
        raise InputError(
            f"weights are given for {_listed(given)}, but the closure returned {_listed(named)}: give one per block"
        )
    return torch.cat([_expanded(name, given[name], block) for name, block in named.items()]).sqrt()


def _expanded(name: Hashable, weight: Weight, block: Tensor) -> Tensor:
    value = torch.as_tensor(weight, dtype=torch.float64, device=block.device).detach()
    if not bool((value >= 0).all() & torch.isfinite(value).all()):
        raise InputError(f"the weight of block {name!r} must be finite, 0 or more; got {weight}")
    try:
        return value.expand(block.shape).reshape(-1)
    except RuntimeError:
        raise InputError(
            f"the weight of block {name!r} has shape {list(value.shape)}, which cannot be expanded to the block's "
            f"{list(block.shape)}"
        ) from None


def _listed(names: Mapping[Hashable, object]) -> str:
    return ", ".join(map(repr, names)) or "no block"
