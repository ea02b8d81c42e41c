"""The Gramian over all ranks, parameter by parameter: whatever is fewer bytes crosses the wire.

With R ranks, of which rank r has m_r losses, and M losses in all, a parameter with d numbers takes one of two ways:

    factors   each rank receives the factors of half of the others, one rank at a time, and multiplies them with its own
    rows      each rank receives d / R columns of the rows of all, [M, d / R], and forms their Gram matrix

Where loss i is the mean over ranks of each one's loss i, the rows are averaged as they arrive, and M is the number of
losses of one rank. What a rank computed is added up over ranks at the end. Parameters are taken in one order on all
ranks, the last one first, as a walk mostly meets them; one that comes before its turn waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gramjd.distributed.ranks import Ranks
from gramjd.distributed.wire import Parcel, unpacked
from gramjd.engine.consumers.cross import add_products
from gramjd.engine.consumers.gramian import Gramian
from gramjd.engine.cotangent import index_tensor
from gramjd.engine.given import GivenRows
from gramjd.engine.parameter import Jacobian
from gramjd.kernels.rows import gram_rows
from gramjd.kernels.symmetric import mirrored


class Exchange:
    """A Gramian [M, M] over the ranks, to which `note` adds the Jacobians of this rank's losses.

    Args:
        ranks: who takes part.
        parameters: in the same order on all ranks.
        counts: losses per rank.
        device: of this rank's losses.
        dtype: of the Gramian.
        mean: a loss is the mean over ranks, all of which have the same number of losses.
    """

    def __init__(
        self,
        ranks: Ranks,
        parameters: Sequence[Tensor],
        counts: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        mean: bool = False,
    ) -> None:
        self.ranks, self.parameters, self.counts, self.device, self.dtype = ranks, parameters, counts, device, dtype
        self.mean = mean
        self.starts = [sum(counts[:r]) for r in range(len(counts) + 1)]
        size = counts[0] if mean else self.starts[-1]
        # Half of G: G is this and its transpose.
        self.half = torch.zeros(size, size, dtype=dtype, device=device)
        # Places of the parameters that the losses of some rank reach.
        self.reached: set[int] = set()
        self._own = Gramian(counts[ranks.rank], device, dtype)
        self._place = {id(p): n for n, p in enumerate(parameters)}
        self._waiting: dict[int, Jacobian] = {}
        self._next = len(parameters) - 1

    def note(self, parameter: Tensor, jacobian: Jacobian) -> None:
        """The Jacobian of a parameter, complete."""
        self._waiting[self._place[id(parameter)]] = jacobian
        while self._next in self._waiting:
            self._take_next()

    def finish(self) -> Tensor:
        """G, once all of this rank's Jacobians were noted."""
        while self._next >= 0:
            self._take_next()
        if not self.mean:
            self._block(self.ranks.rank, self.ranks.rank).add_(self._own.finished(), alpha=0.5)
        total = self.ranks.summed(self.half)
        return total + total.T

    def _take_next(self) -> None:
        n, self._next = self._next, self._next - 1
        jacobian = self._waiting.pop(n, None)
        self._add(n, jacobian or Jacobian(tuple(self.parameters[n].shape)))

    def _add(self, n: int, jacobian: Jacobian) -> None:
        """What one parameter adds, on all ranks at once."""
        ranks = self.ranks
        parcel = Parcel(jacobian) if jacobian.factors else None
        d = math.prod(jacobian.shape) * (2 if self.parameters[n].is_complex() else 1)
        sizes = [size for size, *_ in ranks.meet(0 if parcel is None else parcel.nbytes)]
        if not any(sizes):
            return
        self.reached.add(n)
        by_factors = sum(sizes) * (ranks.size - 1) / 2
        by_rows = self.starts[-1] * d * self.dtype.itemsize * (ranks.size - 1) / ranks.size
        if by_factors <= by_rows and not self.mean:
            self._own.add_share(jacobian)
            self._by_factors(jacobian, None if parcel is None else parcel.packed(), sizes)
        else:
            self._by_rows(jacobian, d)

    def _by_factors(self, jacobian: Jacobian, parcel: Tensor | None, sizes: Sequence[int]) -> None:
        me, size = self.ranks.rank, self.ranks.size
        for step in range(1, size // 2 + 1):
            to, source = (me - step) % size, (me + step) % size
            once = 2 * step == size  # the pair would be met from both ends
            given = self.ranks.swapped(
                parcel, None if once and me < step else to, sizes[source], None if once and me >= step else source
            )
            if given is not None and jacobian.factors:
                theirs = unpacked(given, self.device)
                add_products(self._block(me, source), jacobian, theirs)

    def _by_rows(self, jacobian: Jacobian, d: int) -> None:
        size = self.ranks.size
        width = -(-d // size)
        rows = torch.zeros(self.counts[self.ranks.rank], size * width, dtype=self.dtype, device=self.device)
        for factor in jacobian.factors:
            one = factor.dense if isinstance(factor, GivenRows) else factor
            values = one.materialise(self.dtype)
            values = torch.view_as_real(values) if values.is_complex() else values
            live = index_tensor((one.owners >= 0).nonzero()[0], self.device)
            owners = index_tensor(one.owners[one.owners >= 0], self.device)
            rows[:, :d].index_add_(0, owners, values.reshape(len(values), d).to(self.dtype).index_select(0, live))
        columns = self.ranks.dealt(rows, self.counts)
        if self.mean:
            columns = columns.view(size, -1, width).mean(0)
        self.half.add_(mirrored(gram_rows(columns, self.dtype)), alpha=0.5)

    def _block(self, r: int, s: int) -> Tensor:
        return self.half[self.starts[r] : self.starts[r + 1], self.starts[s] : self.starts[s + 1]]
