"""Rows that passes computed: inputs that the same losses reach lie side by side in one matrix [R, d]."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gramjd.engine.consumers.gramian import Total
from gramjd.engine.factor import weights_of
from gramjd.engine.graph import Edge, Graph
from gramjd.engine.layout import Owners
from gramjd.engine.passes import Row, run
from gramjd.engine.structure import Place
from gramjd.engine.survey import Survey


class Part(NamedTuple):
    """An input in a block: how many real numbers it has there, and its shape."""

    place: Place
    size: int
    shape: tuple[int, ...]


@dataclass
class Block:
    """Inputs of one dtype, on one device, that the same losses reach. `counted`: in the Gramian."""

    owners: Owners
    parts: list[Part]
    dtype: torch.dtype
    device: torch.device
    counted: bool

    @cached_property
    def row(self) -> dict[int, int]:
        """The row of each loss."""
        return {int(i): r for r, i in enumerate(self.owners)}

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers in a row, by input."""
        return [part.size for part in self.parts]

    @cached_property
    def width(self) -> int:
        """Numbers in a row."""
        return sum(self.sizes)


@dataclass
class Rows:
    """The rows of the inputs in `kept`, and the sums over all losses of those in `summed`.

    `counted`: those of `kept` that are in the Gramian.
    """

    graph: Graph
    losses: Sequence[Tensor]
    survey: Survey
    kept: Sequence[Edge]
    counted: Collection[Edge]
    summed: Sequence[Edge] = ()
    blocks: list[Block] = field(init=False)
    values: list[Tensor] = field(init=False, default_factory=list)
    sums: dict[Place, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Compute the rows."""
        number = self.graph.number
        kept = tuple([(number[node], nr) for node, nr in self.kept])
        counted = tuple([edge in self.counted for edge in self.kept])
        known = self.survey.blocks
        if (kept, counted) not in known:
            known[kept, counted] = _blocks(self.survey, kept, counted)
        self.blocks = known[kept, counted]
        self._summed = {(number[node], nr) for node, nr in self.summed}
        self.values = [torch.empty(0)] * len(self.blocks)
        run(self.graph, self.losses, self.survey, self._take)

    def _take(self, i: int, row: Row) -> None:
        """Keep what is wanted of the row of loss i."""
        if not i:
            self.sums = {}
        for b, block in enumerate(self.blocks):
            r = block.row.get(i)
            if r is not None:
                self._put(b, r, row)
        for place in row.keys() & self._summed:
            known = self.sums.get(place)
            # A copy: what a node sends may be what it sends elsewhere, too, or what it saved.
            self.sums[place] = row[place].clone() if known is None else known + row[place]

    def _put(self, b: int, r: int, row: Row) -> None:
        """Write what a loss gave to its row of a block."""
        block = self.blocks[b]
        parts = [_flat(row.get(part.place), part, block) for part in block.parts]
        if len(block.owners) == 1:
            self.values[b] = (parts[0] if len(parts) == 1 else torch.cat(parts)).view(1, -1)
            return
        if not r:
            self.values[b] = torch.empty(len(block.owners), block.width, dtype=block.dtype, device=block.device)
        torch.cat(parts, out=self.values[b][r])

    def add_to(self, total: Total) -> None:
        """Add what the inputs contribute to a Gramian or its diagonal."""
        for block, values in zip(self.blocks, self.values, strict=True):
            if block.counted:
                total.add_rows(block.owners, values)

    def gradients(self, w: Tensor, edges: Sequence[Edge]) -> list[tuple[Tensor, Tensor]]:
        """Those inputs with their `sum_i w_i J_i`; those of `summed` with the sum over their losses.

        Inputs that no gradient was sent to are left out.
        """
        found: dict[Place, Tensor] = dict(self.sums)
        for block, values in zip(self.blocks, self.values, strict=True):
            update = weights_of(block.owners, w).to(values.dtype) @ values
            for part, piece in zip(block.parts, update.split(block.sizes), strict=True):
                found[part.place] = piece
        targets, number = self.graph.targets, self.graph.number
        pieces = [(targets[edge], found.get((number[edge[0]], edge[1]))) for edge in edges]
        return [(tensor, _like(piece, tensor)) for tensor, piece in pieces if piece is not None]


def _blocks(survey: Survey, kept: Sequence[Place], counted: Sequence[bool]) -> list[Block]:
    """The blocks of inputs, in the order in which their first inputs come."""
    found: dict[tuple[int, torch.dtype, torch.device, bool], Block] = {}
    for place, counts in zip(kept, counted, strict=True):
        n, nr = place
        if not survey.reached[n] or not survey.structure.outputs[n]:
            continue
        meta = survey.structure.outputs[n][nr]
        key = survey.reached[n], meta.dtype.to_real(), meta.device, counts
        block = found.setdefault(key, Block(np.array(survey.losses_at(n)), [], *key[1:]))
        block.parts.append(Part(place, math.prod(meta.shape) * (2 if meta.dtype.is_complex else 1), meta.shape))
    return [block for block in found.values() if block.width]


def _flat(value: Tensor | None, part: Part, block: Block) -> Tensor:
    """A gradient as a vector of real numbers."""
    if value is None:
        return torch.zeros(part.size, dtype=block.dtype, device=block.device)
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    return value.reshape(-1)


def _like(piece: Tensor, tensor: Tensor) -> Tensor:
    """A gradient, or a vector of its real numbers, in the shape of a tensor."""
    if tensor.is_complex() and not piece.is_complex():
        piece = torch.view_as_complex(piece.view(-1, 2))
    return piece.view(tensor.shape) if piece.is_contiguous() else piece.reshape(tensor.shape)
