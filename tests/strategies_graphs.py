"""Random programs: a pool of tensors grown by drawn operations, ending in a vector of losses.

Operations are in ``random_operations.py``; a drawn program prints as one line per operation, with shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from random import Random

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.random_operations import OPERATIONS
from tests.zoo.registry import sandbox

MAX_ELEMENTS = 400
MAX_LOSSES = 12


class Program:
    """A program that has run: what it did, line by line, and the losses it ended in."""

    def __init__(self, lines: list[str], losses: Tensor | list[Tensor]) -> None:
        self.lines, self.losses = lines, losses

    def __repr__(self) -> str:
        return "\n  ".join(["Program:", *self.lines])


@dataclass
class Hand:
    """What an operation may ask for: numbers (noted in the program's text), parameters, other tensors."""

    random: Random = field(default_factory=Random)
    pool: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def start(self, seed: int) -> None:
        """Everything until the next start depends on this seed and on the tensors so far."""
        self.random.seed(seed)
        torch.manual_seed(seed)
        self.notes = []

    def int(self, low: int, high: int) -> int:
        value = self.random.randint(low, high)
        self.notes.append(str(value))
        return value

    def flag(self) -> bool:
        return bool(self.int(0, 1))

    def pick(self, options: Sequence) -> object:
        return self.random.choice(options)

    def dim(self, x: Tensor) -> int:
        return self.int(0, x.dim() - 1)

    def weight(self, *shape: int) -> Tensor:
        """A parameter of this shape: one that exists already (perhaps transposed), or a new one."""
        fits = [w for w in self.weights if tuple(w.shape) == shape]
        turned = [w.t() for w in self.weights if w.dim() == 2 and tuple(w.shape[::-1]) == shape]
        known = fits + turned
        if known and self.random.random() < 0.4:
            self.notes.append("reused")
            return self.pick(known)  # type: ignore[return-value]
        made = nn.Parameter(torch.randn(shape) / max(1, len(shape)))
        self.weights.append(made)
        return made

    def like(self, x: Tensor) -> Tensor:
        """Another tensor of the pool of the same shape, or ``x`` itself."""
        same = [k for k, t in enumerate(self.pool) if t.shape == x.shape]
        k = self.pick(same)
        self.notes.append(f"t{k}")
        return self.pool[k]  # type: ignore[index]


def apply_one(hand: Hand, lines: list[str], seed: int) -> None:
    """Choose an operation and one of the last operands, run it, and put the result into the pool."""
    hand.start(seed)
    k = max(0, len(hand.pool) - 1 - int(hand.random.random() ** 2 * 5))
    x = hand.pool[k]
    name = str(hand.pick([name for name, (needs, _) in OPERATIONS.items() if needs(x)]))
    y = OPERATIONS[name][1](hand, x)
    if y.numel() == 0 or y.numel() > MAX_ELEMENTS:
        return
    lines.append(f"t{len(hand.pool)} = {name}(t{k}; {', '.join(hand.notes)})  {list(x.shape)} -> {list(y.shape)}")
    hand.pool.append(y)


def loss_vector(hand: Hand, lines: list[str], which: int) -> Tensor:
    """Keep one or two axes of a pooled tensor (or none) and reduce the others."""
    x = hand.pool[which]
    long = [d for d in range(x.dim()) if x.shape[d] > 1]
    keep = sorted(hand.random.sample(long, min(len(long), hand.pick([0, 1, 1, 1, 1, 1, 1, 2, 2]))))
    while keep and prod(x.shape[d] for d in keep) > MAX_LOSSES:
        keep.pop()
    reduced = [d for d in range(x.dim()) if d not in keep]
    y = (x - 0.3).square()
    losses = y.mean(reduced) if reduced else y
    lines.append(f"losses of t{which}, axes {keep} kept: {list(losses.shape)}")
    return losses


def shaped(hand: Hand, losses: Tensor, lines: list[str]) -> Tensor:
    """Perhaps a selection or a rearrangement of the losses."""
    how = hand.int(0, 9)
    if losses.dim() == 0 or how > 5:
        return losses
    n = len(losses)
    rows = torch.tensor([hand.int(0, n - 1) for _ in range(min(n, 4))])
    made = [
        lambda: losses[rows],
        lambda: losses.flip(0),
        lambda: losses[:: 2 if n > 1 else 1],
        lambda: losses.reshape(-1),
        lambda: losses.mT if losses.dim() == 2 else losses.unsqueeze(1),
        lambda: losses.mean(0),
    ][how]()
    lines.append(f"rearranged by way {how}: {list(made.shape)}")
    return made


@st.composite
def programs(draw: Callable, operations: int = 10) -> Program:
    """A program of up to ``operations`` operations on data and parameters; it shrinks by leaving out operations.

    Every operation has a seed of its own, because numbers drawn one by one favour the first and the smallest.
    """
    seeds = st.integers(0, 2**20)
    return program(draw(st.lists(seeds, min_size=1, max_size=operations)), draw(seeds), draw(seeds))


def program(steps: Sequence[int], first: int, last: int) -> Program:
    """The program of these seeds: of its operations, of its data, of its losses."""
    lines: list[str] = []
    hand = Hand()
    with sandbox(0, torch.float64):
        start(hand, lines, first)
        for seed in steps:
            apply_one(hand, lines, seed)
        hand.start(last)
        return Program(lines, ending(hand, lines))


def start(hand: Hand, lines: list[str], seed: int) -> None:
    """Data of a drawn shape times a parameter."""
    hand.start(seed)
    shape = [hand.pick([1, 2, 2, 3, 3, 4, 5]) for _ in range(hand.pick([2, 2, 3, 3, 3, 4]))]
    data, weight = torch.randn(shape), hand.weight(shape[-1], hand.int(1, 5))
    hand.pool.append(data @ weight)
    lines.append(f"t0 = data {shape} @ parameter {list(weight.shape)}")


def ending(hand: Hand, lines: list[str]) -> Tensor | list[Tensor]:
    """The last tensor's losses, perhaps joined, as a list or by addition, by another's."""
    last = len(hand.pool) - 1
    first = shaped(hand, loss_vector(hand, lines, last), lines)
    how = hand.int(0, 5)
    if how > 1:
        return first
    second = loss_vector(hand, lines, hand.int(0, last))
    if how == 0:
        return [first, second]
    lines.append("added where shapes agree, else listed")
    return first + second if first.shape == second.shape else [first, second]
