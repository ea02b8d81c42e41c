"""The Gramian over all ranks, parameter by parameter: whatever is fewer bytes crosses the wire.

With R ranks, of which rank r has m_r losses, and M losses in all, a parameter with d numbers takes one of two ways:

    factors   each rank receives the factors of half of the others, one rank at a time, and multiplies them with its own
    rows      each rank receives d / R columns of the rows of all, [M, d / R], and forms their Gram matrix

Where loss i is the mean over ranks of each one's loss i, rows are averaged as they arrive, or products over all pairs
of ranks, and G is [m, m] for the m losses of one rank. What a rank computed is added up over ranks at the end.
Parameters are taken in one order on all ranks, that of the walk where their graphs are alike, small ones in bundles;
one that comes before its turn waits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gramjd.distributed.ranks import MOST, Ranks
from gramjd.distributed.wire import Parcel, unpacked
from gramjd.engine import dtensor
from gramjd.engine.consumers.cross import add_products
from gramjd.engine.consumers.gramian import Gramian
from gramjd.engine.cotangent import index_tensor
from gramjd.engine.given import GivenRows
from gramjd.engine.parameter import Jacobian
from gramjd.errors import RankError
from gramjd.kernels.rows import gram_rows
from gramjd.kernels.symmetric import mirrored

# The least bytes of rows that a rank deals out at a time; numbers of the parameters that are exchanged together.
AT_ONCE, BUNDLE = 1 << 20, 1 << 18


class Sent(NamedTuple):
    """What a rank sends for the parameter at a place: the way that it takes, and bytes."""

    place: int
    way: str
    bytes: int


def way(sizes: Sequence[int], numbers: int, counts: Sequence[int], dtype: torch.dtype, limit: int) -> str:
    """The way that a parameter takes: "factors" or "rows", whichever is fewer bytes on an average rank.

    Args:
        sizes: bytes of the factors of each rank.
        numbers: d, of the parameter.
        counts: losses of each rank.
        dtype: of the rows.
        limit: bytes that the rows of one rank may take; where they would take more, factors go.
    """
    ranks = len(sizes)
    by_factors = sum(sizes) * (ranks - 1) / 2
    by_rows = sum(counts) * numbers * dtype.itemsize * (ranks - 1) / ranks
    return "rows" if by_rows < by_factors and max(counts) * numbers * dtype.itemsize <= limit else "factors"


def sent_by(rank: int, way: str, sizes: Sequence[int], numbers: int, counts: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes that a rank sends for a parameter."""
    ranks = len(sizes)
    if way == "rows":
        return counts[rank] * -(-numbers // ranks) * (ranks - 1) * dtype.itemsize
    # Where the number of ranks is even, one of the two that are opposite sends.
    opposite = ranks % 2 == 0 and rank < ranks // 2
    return sizes[rank] * (ranks // 2 - opposite)


class Exchange:
    """A Gramian [M, M] over the ranks, to which `note` adds the Jacobians of this rank's losses.

    Args:
        ranks: who takes part.
        parameters: in the same order on all ranks.
        counts: losses per rank.
        device: of this rank's losses.
        dtype: of the Gramian.
        mean: a loss is the mean over ranks, all of which have the same number of losses.
        limit: bytes that rows of one parameter may take on a rank; the same on all of them.
        order: places of the parameters in the order in which they are taken; default: the last one first.

    Attributes:
        sent: what this rank has sent for each parameter so far.
        reached: places of the parameters that the losses of some rank reach.
    """

    def __init__(
        self,
        ranks: Ranks,
        parameters: Sequence[Tensor],
        counts: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        mean: bool = False,
        limit: int = sys.maxsize,
        order: Sequence[int] | None = None,
    ) -> None:
        self.ranks, self.parameters, self.counts, self.device, self.dtype = ranks, parameters, counts, device, dtype
        self.mean, self.limit = mean, limit
        self.sent: list[Sent] = []
        self.reached: set[int] = set()
        self.starts = [sum(counts[:r]) for r in range(len(counts) + 1)]
        size = counts[0] if mean else self.starts[-1]
        # Half of G: G is this and its transpose.
        self.half = torch.zeros(size, size, dtype=dtype, device=device)
        self._own = Gramian(counts[ranks.rank], device, dtype)
        self._place = {id(p): n for n, p in enumerate(parameters)}
        self._waiting: dict[int, Jacobian] = {}
        order = range(len(parameters))[::-1] if order is None else order
        self._bundles = list(_bundles(parameters, order))[::-1]

    def note(self, parameter: Tensor, jacobian: Jacobian) -> None:
        """The Jacobian of a parameter, complete."""
        self._waiting[self._place[id(parameter)]] = jacobian
        while self._bundles and all(n in self._waiting for n in self._bundles[-1]):
            self._add(self._bundles.pop())

    @torch.no_grad()
    def finish(self) -> Tensor:
        """G, once all of this rank's Jacobians were noted."""
        while self._bundles:
            self._add(self._bundles.pop())
        self._block(self.ranks.rank, self.ranks.rank).add_(self._own.finished(), alpha=0.5 * self._share)
        total = self.ranks.summed(self.half)
        return total + total.T

    def plan(self, jacobians: Mapping[int, Jacobian]) -> list[Sent]:
        """What this rank would send for Jacobians without numbers, by the ids of their parameters."""
        while self._bundles:
            places = self._bundles.pop()
            self._agreed(places, [jacobians.get(id(self.parameters[n])) or self._none(n) for n in places])
        return self.sent

    def _none(self, n: int) -> Jacobian:
        return Jacobian(dtensor.counted_shape(self.parameters[n]))

    def _add(self, places: Sequence[int]) -> None:
        """What some parameters add, on all ranks at once."""
        jacobians = [self._waiting.pop(n) if n in self._waiting else self._none(n) for n in places]
        met = self._agreed(places, jacobians)
        by_factors = [one for one in met if one.way == "factors"]
        if by_factors:
            for one in by_factors:
                self._own.add_share(one.jacobian)
            self._by_factors(by_factors)
        by_rows = [one for one in met if one.way == "rows"]
        if by_rows:
            self._by_rows(by_rows)

    def _agreed(self, places: Sequence[int], jacobians: Sequence[Jacobian]) -> list[Met]:
        """Have the ranks choose the way of each parameter; those that no loss reaches are left out."""
        parcels = [Parcel(jacobian) if jacobian.factors else None for jacobian in jacobians]
        widths = [
            math.prod(jacobian.shape) * (2 if self.parameters[n].is_complex() else 1)
            for n, jacobian in zip(places, jacobians, strict=True)
        ]
        nbytes = [0 if parcel is None else parcel.nbytes for parcel in parcels]
        said = self.ranks.meet(*nbytes, *widths)
        found = []
        for k, (n, jacobian, parcel) in enumerate(zip(places, jacobians, parcels, strict=True)):
            sizes = [row[k] for row in said]
            if not any(sizes):
                continue
            numbers = {row[len(places) + k] for row in said if row[k]}
            if len(numbers) > 1:
                raise RankError(
                    f"ranks hold different parts, {sorted(numbers)} numbers, of a parameter of shape "
                    f"{tuple(self.parameters[n].shape)}: give several losses on each rank, or one on each"
                )
            (d,) = numbers
            self.reached.add(n)
            chosen = way(sizes, d, self.counts, self.dtype, self.limit)
            self.sent.append(Sent(n, chosen, sent_by(self.ranks.rank, chosen, sizes, d, self.counts, self.dtype)))
            found.append(Met(jacobian, parcel, sizes, d, chosen))
        return found

    def _by_factors(self, met: Sequence[Met]) -> None:
        me, size = self.ranks.rank, self.ranks.size
        mine = self._packed([one.parcel for one in met if one.parcel is not None])
        totals = [sum(one.sizes[rank] for one in met) for rank in range(size)]
        for step in range(1, size // 2 + 1):
            to, source = (me - step) % size, (me + step) % size
            once = 2 * step == size  # the pair would be met from both ends
            given = self.ranks.swapped(
                mine, None if once and me < step else to, totals[source], None if once and me >= step else source
            )
            if given is None:
                continue
            block = self._block(me, source)
            products = torch.zeros_like(block) if self.mean else block
            for one, part in zip(met, given.split([one.sizes[source] for one in met]), strict=True):
                if one.jacobian.factors and len(part):
                    add_products(products, one.jacobian, unpacked(part, self.device))
            if self.mean:
                block.add_(products, alpha=self._share)

    def _packed(self, parcels: Sequence[Parcel]) -> Tensor | None:
        if not parcels:
            return None
        out = torch.zeros(sum(parcel.nbytes for parcel in parcels), dtype=torch.uint8, device=self.device)
        for parcel, part in zip(parcels, out.split([parcel.nbytes for parcel in parcels]), strict=True):
            parcel.pack(part)
        return out

    def _by_rows(self, met: Sequence[Met]) -> None:
        ranks, size = self.ranks, self.ranks.size
        widths = [-(-one.numbers // size) * size for one in met]
        rows = torch.zeros(self.counts[ranks.rank], sum(widths), dtype=self.dtype, device=self.device)
        for one, part in zip(met, rows.split(widths, 1), strict=True):
            part[:, : one.numbers] = self._rows(one.jacobian, one.numbers)
        # A part at a time, which is the same on all ranks: a multiple of their number.
        line = max(self.counts) * self.dtype.itemsize
        step = max(1, max(AT_ONCE, line * sum(widths) // 8) // (line * size)) * size
        for part in rows.split(step, 1):
            columns = ranks.dealt(part, self.counts)
            if self.mean:
                columns = columns.view(size, -1, columns.shape[1]).mean(0)
            self.half.add_(mirrored(gram_rows(columns, self.dtype)), alpha=0.5)

    def _rows(self, jacobian: Jacobian, d: int) -> Tensor:
        """This rank's rows [m, d] of a parameter's Jacobian."""
        m = self.counts[self.ranks.rank]
        found: Tensor | None = None
        for factor in jacobian.factors:
            one = factor.dense if isinstance(factor, GivenRows) else factor
            values = one.materialise(self.dtype)
            values = torch.view_as_real(values) if values.is_complex() else values
            values = values.reshape(len(values), d).to(self.dtype)
            if found is None and np.array_equal(one.owners, np.arange(m)):
                found = values
                continue
            found = torch.zeros(m, d, dtype=self.dtype, device=self.device) if found is None else found
            live = index_tensor((one.owners >= 0).nonzero()[0], self.device)
            owners = index_tensor(one.owners[one.owners >= 0], self.device)
            found = found.index_add(0, owners, values.index_select(0, live))
        return torch.zeros(m, d, dtype=self.dtype, device=self.device) if found is None else found

    @property
    def _share(self) -> float:
        """What a product of rows of two ranks counts: those of means are averaged over all pairs of ranks."""
        return 1 / self.ranks.size**2 if self.mean else 1.0

    def _block(self, r: int, s: int) -> Tensor:
        if self.mean:
            return self.half
        return self.half[self.starts[r] : self.starts[r + 1], self.starts[s] : self.starts[s + 1]]


class Met(NamedTuple):
    """A parameter that some rank reaches: bytes of its factors on each rank, d, and the way that it takes."""

    jacobian: Jacobian
    parcel: Parcel | None
    sizes: list[int]
    numbers: int
    way: str


def _bundles(parameters: Sequence[Tensor], order: Sequence[int]) -> Iterator[list[int]]:
    """Places of parameters that are exchanged together: a large one alone, small ones in one."""
    places: list[int] = []
    numbers = 0
    for n in order:
        if places and (numbers + parameters[n].numel() > BUNDLE or 2 * len(places) + 2 > MOST):
            yield places
            places, numbers = [], 0
        places.append(n)
        numbers += parameters[n].numel()
    if places:
        yield places
