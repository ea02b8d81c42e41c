"""Cotangents: values with a layout; how they meet, spread over rows, and are summed to a smaller shape.

What becomes of a layout is decided at once, what becomes of the values is computed when they are first read. A plan
decides and never reads: its cotangents hold no values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gramjd.engine import _torch
from gramjd.engine.gaps import compatible, distinct
from gramjd.engine.layout import Layout, Owners, Piece, Shape, cached, canonical, dense, split
from gramjd.kernels.tracing import concretely, constant, donates, tracing

Charge = Callable[[int], None]


def unlimited(_: int) -> None:
    """A charge that never refuses."""


class UnplannedError(RuntimeError):
    """Values were read where there are none: by a rule itself, instead of by a function that it sends."""


class Cotangent:
    """`values [K, *shape]` whose slices belong to losses as `layout` says.

    `operation` names the node that sent it. `donated`: nothing else refers to the memory of the values, so that
    whatever receives the cotangent may write over it. `capacity`: rows for which that memory has room, where more are
    expected.
    """

    __slots__ = (
        "_load",
        "_memory",
        "_scope",
        "_values",
        "capacity",
        "donated",
        "dtype",
        "layout",
        "operation",
        "shape",
    )

    def __init__(
        self,
        layout: Layout,
        shape: Shape,
        dtype: torch.dtype,
        values: Tensor | None = None,
        *,
        operation: str = "",
        donated: bool = False,
    ) -> None:
        self.layout, self.shape, self.dtype = layout, tuple(shape), dtype
        self.operation, self.donated, self.capacity = operation, donated and donates(), 0
        self._values = values
        self._memory: Tensor | None = None
        self._load: Callable[[], Tensor] | None = None
        # Everything derived while one node is visited, so that its values can be dropped together.
        self._scope: list[Cotangent] = []

    @classmethod
    def of(cls, layout: Layout, values: Tensor, *, operation: str = "", donated: bool = False) -> Cotangent:
        """A cotangent with values [K, *shape]."""
        return cls(layout, values.shape[1:], values.dtype, values, operation=operation, donated=donated)

    @property
    def planned(self) -> bool:
        """Returns True if there are no values, as in a plan."""
        return self._values is None and self._load is None

    @property
    def values(self) -> Tensor:
        """[K, *shape]. Raises UnplannedError in a plan."""
        if self._values is None:
            if self._load is None:
                raise UnplannedError
            self._values = self._load()
        return self._values

    @property
    def numel(self) -> int:
        """Numbers in all rows."""
        return self.layout.stacked * math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.numel * self.dtype.itemsize

    @property
    def stacked_bytes(self) -> int:
        """Bytes of stacked rows: none for a single one, which plain training has, too."""
        return self.nbytes if self.layout.stacked > 1 else 0

    def take(self, other: Cotangent) -> None:
        """Have the values of another one, if it has any."""
        self._values = other._values

    def put(self, values: Tensor) -> None:
        """Have these values."""
        self._values = values

    def drop(self) -> None:
        """Drop the values, and all that was derived from them."""
        self._values = None
        for one in self._scope:
            one._values = None

    def derived(
        self, layout: Layout, shape: Shape, compute: Callable[[], Tensor], *, donated: bool = False
    ) -> Cotangent:
        """Another cotangent whose values are computed from these (and possibly others) when they are read."""
        out = Cotangent(layout, shape, self.dtype, operation=self.operation, donated=donated)
        out._load, out._scope = compute, self._scope
        self._scope.append(out)
        return out

    def viewed(self, *shape: int) -> Cotangent:
        """The same rows in another shape."""
        if shape == self.shape:
            return self
        return self.derived(self.layout, shape, lambda: self.values.reshape(-1, *shape), donated=self.donated)


def share_scope(cotangents: Sequence[Cotangent]) -> None:
    """Let the values derived from any of these be dropped together."""
    for other in cotangents[1:]:
        other._scope = cotangents[0]._scope


def index_tensor(index: npt.NDArray[np.int64] | npt.NDArray[np.bool_], device: torch.device) -> torch.Tensor:
    """An index as a tensor on a device. Other devices than the CPU get each index once: training repeats its steps."""
    if tracing() is not None:
        with concretely():
            placed = torch.from_numpy(np.array(index)).to(device)
        return constant(placed)
    if device.type == "cpu":
        return torch.from_numpy(np.ascontiguousarray(index))
    return _uploaded(index.tobytes(), str(index.dtype), index.shape, device)


@lru_cache(maxsize=4096)
def _uploaded(content: bytes, dtype: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype).reshape(shape).copy()).to(device)


# -- rows of one loss ------------------------------------------------------------------------------------------------


def add_rows(out: Tensor, owner: Owners, values: Tensor) -> None:
    """`out[owner[r]] += values[r]` for every r with an owner (-1: none)."""
    live = np.flatnonzero(owner >= 0)
    if len(live) < len(owner):
        values = values.index_select(0, index_tensor(live, values.device))
    out.index_add_(0, index_tensor(owner[live], out.device), values.to(out.dtype))


# -- batch axes that are given up -------------------------------------------------------------------------------------


class _Spread(NamedTuple):
    """Slices along the pieces `gone` become rows: the new layout, and which row each slice goes to.

    `stays`: all slices of a row stay in that row, as where gaps were all that made them differ.
    """

    layout: Layout
    sizes: tuple[int, ...]
    gone: tuple[int, ...]
    owner: Owners
    stays: bool


def densify(
    cotangent: Cotangent, dims: set[int] | None, charge: Charge = unlimited, shape: Shape | None = None
) -> Cotangent:
    """Give each loss that owns slices along `dims` (None: all) rows of its own: those slices, and zeros elsewhere."""
    layout = cotangent.layout
    if not layout.diagonal:
        return cotangent
    shape = cotangent.shape if shape is None else shape
    plan = _spreading(layout, tuple(shape), None if dims is None else tuple(sorted(dims)))
    if plan is None:
        return cotangent
    if plan.stays:
        return cotangent.derived(plan.layout, cotangent.shape, lambda: cotangent.values, donated=cotangent.donated)
    count = plan.layout.stacked
    charge(count * math.prod(cotangent.shape) * cotangent.dtype.itemsize)
    return cotangent.derived(
        plan.layout,
        cotangent.shape,
        lambda: _spread(cotangent.values, plan).reshape(count, *cotangent.shape),
        donated=True,
    )


@cached
def _spreading(layout: Layout, shape: tuple[int, ...], dims: tuple[int, ...] | None) -> _Spread | None:
    cut = split(layout, shape)
    if cut is None or dims is None:
        shape = tuple(p.size for p in layout.pieces)
        dims = tuple(range(len(shape)))
        cut = split(layout, shape)
        assert cut is not None
    pieces, owners = cut
    axes = [a for a, p in enumerate(pieces) if p.diagonal]
    gone = [a for a in axes if pieces[a].dim in dims]
    if not gone:
        return None
    order = [1 + axes.index(a) for a in gone] + [1 + axes.index(a) for a in axes if a not in gone]
    spread = owners.transpose([0, *order])
    count = layout.stacked * math.prod(pieces[a].size for a in gone)
    owner, kept = compatible(spread.reshape(count, *spread.shape[1 + len(gone) :]))
    new = canonical([Piece(p.size, p.diagonal and a not in gone) for a, p in enumerate(pieces)], kept)
    row = np.arange(count) // (count // layout.stacked)
    stays = len(kept) == layout.stacked and bool(((owner < 0) | (owner == row)).all())
    return _Spread(new, tuple(p.size for p in pieces), tuple(gone), owner, stays)


def _spread(values: Tensor, plan: _Spread) -> Tensor:
    if _torch.is_spread(values):  # over the ranks of a mesh: rows of whole tensors, alike on all of them
        return _torch.replicated(_spread(values.full_tensor(), plan), values.device_mesh)  # type: ignore[attr-defined]
    """`out[owner[k, g], .., g, ..] += values[k, .., g, ..]`, g running over the pieces `gone`."""
    layout, sizes, gone, owner, _ = plan
    stacked, count = values.shape[0], layout.stacked
    out = torch.zeros(count, *sizes, dtype=values.dtype, device=values.device)
    lengths = [sizes[a] for a in gone]
    front = [1 + a for a in gone]
    rest = [1 + a for a in range(len(sizes)) if a not in gone]
    source = values.reshape(stacked, *sizes).permute(0, *front, *rest)
    # A compiler does not take what is written through strides.
    if donates() and len(owner) == count and (owner == np.arange(count)).all():
        grid = out.view(stacked, *lengths, *sizes)
        offset = 1 + len(gone)
        strides = [grid.stride(1 + j) + grid.stride(offset + a) for j, a in enumerate(gone)]
        tail = [grid.stride(offset - 1 + a) for a in rest]
        grid.as_strided(source.shape, (grid.stride(0), *strides, *tail)).copy_(source)
        return out
    place = np.stack(np.unravel_index(np.arange(len(owner)), (stacked, *lengths)), axis=1)
    live = owner >= 0
    index = index_tensor(np.concatenate([owner[live, None], place[live, 1:]], axis=1), values.device)
    flat = source.reshape(len(owner), *source.shape[1 + len(gone) :])
    flat = flat.index_select(0, index_tensor(np.flatnonzero(live), values.device))
    out.permute(0, *front, *rest).index_put_(tuple(index.unbind(1)), flat, accumulate=True)
    return out


# -- sums down to a smaller shape -------------------------------------------------------------------------------------


def reduce_to(cotangent: Cotangent, shape: Shape, charge: Charge = unlimited) -> Cotangent:
    """Sum the cotangent of a broadcast result to the operand's `shape`; diagonal pieces summed over become rows."""
    full, shape = cotangent.shape, tuple(shape)
    if full == shape:
        return cotangent
    if split(cotangent.layout, full) is None:
        cotangent = densify(cotangent, None, charge)
    plan = _reduction(cotangent.layout, full, shape)
    return cotangent.derived(plan.layout, shape, lambda: _reduced(cotangent.values, plan, shape))


def _reduced(values: Tensor, plan: _Reduction, shape: tuple[int, ...]) -> Tensor:
    values = values.reshape(plan.sizes).permute(plan.order)
    if plan.over:
        values = values.sum(dim=plan.over)
    values = values.reshape(plan.stacked, *shape)
    if plan.owner is None:
        return values
    out = torch.zeros(plan.layout.stacked, *shape, dtype=values.dtype, device=values.device)
    add_rows(out, plan.owner, values)
    return out


class _Reduction(NamedTuple):
    """How to sum down: split into `sizes`, reorder, sum `over` the last ones.

    Of the `stacked` rows that are left, row r goes to row `owner[r]` of the layout (None: each to its own).
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...]
    over: tuple[int, ...]
    stacked: int
    owner: Owners | None
    layout: Layout


@cached
def _reduction(layout: Layout, full: tuple[int, ...], shape: tuple[int, ...]) -> _Reduction:
    cut = split(layout, full)
    assert cut is not None, "the caller densifies what cannot be split"
    pieces, owners = cut
    lead = len(full) - len(shape)
    summed = {d for d, n in enumerate(full) if d < lead or (shape[d - lead] == 1 and n != 1)}
    over = [1 + a for a, p in enumerate(pieces) if p.dim in summed and not p.diagonal]
    gone = [1 + a for a, p in enumerate(pieces) if p.dim in summed and p.diagonal]
    rest = [1 + a for a, p in enumerate(pieces) if p.dim not in summed]
    axes = [1 + a for a, p in enumerate(pieces) if p.diagonal]
    order_of = [0, *(1 + axes.index(a) for a in gone), *(1 + axes.index(a) for a in axes if a not in gone)]
    moved = owners.transpose(order_of)
    count = math.prod(moved.shape[: 1 + len(gone)])
    moved = moved.reshape(count, *moved.shape[1 + len(gone) :])
    owner, kept = compatible(moved) if gone else (np.arange(count), moved)
    alone = len(kept) == count and bool((owner == np.arange(count)).all())
    order = (0, *gone, *rest, *over)
    last = tuple(range(1 + len(gone) + len(rest), len(order)))
    small = canonical([Piece(pieces[a - 1].size, pieces[a - 1].diagonal) for a in rest], kept)
    sizes = (len(owners), *(p.size for p in pieces))
    return _Reduction(sizes, order, last, count, None if alone else owner, small)


def by_loss(owners: Owners, numel: int) -> tuple[Layout, Callable[[Tensor], Tensor]]:
    """For rows [R, *] of `owners`: the layout with one row per loss, and what adds the rows of one loss up."""
    owner, kept = distinct(owners.reshape(-1))
    layout = dense(kept, numel)
    if len(kept) == len(owner) and (owner == np.arange(len(owner))).all():
        return layout, lambda values: values

    def sums(values: Tensor) -> Tensor:
        out = torch.zeros(len(kept), *values.shape[1:], dtype=values.dtype, device=values.device)
        add_rows(out, owner, values)
        return out

    return layout, sums
