"""Gaps: slices that no loss owns, such as tokens that another expert took or padding that was dropped.

What lies in a gap is zero, so it may be given to any loss. Layouts with gaps are added up into one where no slice has
two owners, rows whose owners agree wherever both own something are one row, and once all that meets at a tensor is
there, a batch axis may grow over its gaps: owners per token become owners per sample again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gramjd.engine.layout import Layout, Owners, Piece, Shape, cached, canonical, repeats, split

# The part of all slices that has to be owned for the gaps between them to be filled.
MOSTLY = 0.5
# Rows of which each is compared with all others; of more of them only equal ones are put together.
MANY = 1 << 11


def overlay(a: Layout, b: Layout) -> Layout | None:
    """One layout for the sum of two over one tensor; None if a slice has two owners, or their pieces do not nest."""
    if a is b:
        return a
    if a.stacked != b.stacked or not (a.gaps or b.gaps or a.structure != b.structure):
        return None
    return _overlay(a, b)


@cached
def _overlay(a: Layout, b: Layout) -> Layout | None:
    found = _refined(a, b)
    if found is None:
        return None
    pieces, mine, theirs = found
    if ((mine >= 0) & (theirs >= 0) & (mine != theirs)).any():
        return None
    return _coarsened(pieces, np.where(mine >= 0, mine, theirs), fill=False)


def _refined(a: Layout, b: Layout) -> tuple[list[Piece], Owners, Owners] | None:
    """Pieces that both layouts have after cuts, diagonal where one of the two is, and the owners of each over them."""
    cut, other = split(a, [p.size for p in b.pieces]), split(b, [p.size for p in a.pieces])
    if cut is None or other is None:
        return None
    pieces = [Piece(p.size, p.diagonal or q.diagonal) for p, q in zip(cut[0], other[0], strict=True)]
    return pieces, _spread(*cut, pieces), _spread(*other, pieces)


def _spread(mine: Sequence[Piece], owners: Owners, pieces: Sequence[Piece]) -> Owners:
    """Owners over the pieces that are diagonal in `pieces`."""
    sizes = [p.size for p in pieces if p.diagonal]
    shape = [p.size if p.diagonal else 1 for p, q in zip(mine, pieces, strict=True) if q.diagonal]
    return np.broadcast_to(owners.reshape(len(owners), *shape), (len(owners), *sizes))


def filled(layout: Layout, shape: Shape) -> Layout:
    """The layout with its gaps given to owners next to them, where that makes a batch axis shorter.

    Owners per token that were known by an index are owners per sample then, as they are everywhere else in the model:
    whatever comes next is planned once and not for each pattern of gaps. Layouts with few owned slices stay as they
    are: those of one sample each, and those of a rarely used branch.
    """
    return _filled(layout, tuple(shape)) if layout.gaps and layout.losses > 1 else layout


@cached
def _filled(layout: Layout, shape: tuple[int, ...]) -> Layout:
    if (layout.owners >= 0).mean() <= MOSTLY:
        return layout
    pieces, owners = split(layout, shape) or (layout.pieces, layout.owners)
    return _coarsened(pieces, owners, fill=True)


def _coarsened(pieces: Sequence[Piece], owners: Owners, fill: bool) -> Layout:
    """Without batch axes along which owners do not change; `fill`: gaps count as whatever owner is wanted."""
    out: list[Piece] = []
    gone: list[int] = []
    axis = 0
    for piece in pieces:
        axis += piece.diagonal
        best = owners.max(axis=axis, keepdims=True) if piece.diagonal else owners
        constant = piece.diagonal and bool(((owners == best) | (fill & (owners < 0))).all())
        if constant:
            owners = best
            gone.append(axis)
        out.append(Piece(piece.size, piece.diagonal and not constant))
    return _with_runs(canonical(out, owners.squeeze(tuple(gone))), fill)


def _with_runs(layout: Layout, fill: bool) -> Layout:
    """Each batch axis cut into runs of one owner, which are positions of it."""
    out: list[Piece] = []
    owners, axis = layout.owners, 1
    for piece in layout.pieces:
        if not piece.diagonal:
            out.append(piece)
            continue
        run = _longest_run(owners, axis) if fill else repeats(owners, axis)
        shape = (*owners.shape[:axis], piece.size // run, run, *owners.shape[axis + 1 :])
        owners = owners.reshape(shape).max(axis=axis + 1)
        out += [Piece(piece.size // run, True), Piece(run, False)]
        axis += 1
    return canonical(out, owners)


def _longest_run(owners: Owners, axis: int) -> int:
    """The largest run length r such that of each r slices in line all that are owned have one owner."""
    size = owners.shape[axis]
    low = np.where(owners >= 0, owners, np.iinfo(np.int64).max)
    for run in range(size, 1, -1):
        if size % run:
            continue
        shape = (*owners.shape[:axis], size // run, run, *owners.shape[axis + 1 :])
        largest, least = owners.reshape(shape).max(axis=axis + 1), low.reshape(shape).min(axis=axis + 1)
        if ((largest < 0) | (largest == least)).all():
            return run
    return 1


# -- rows of equal owners ---------------------------------------------------------------------------------------------


def distinct(owners: Owners) -> tuple[Owners, Owners]:
    """For each row its index among the distinct ones (-1 if it owns nothing), and those, in first-seen order."""
    flat = np.ascontiguousarray(owners).reshape(len(owners), -1)
    live = np.flatnonzero((flat >= 0).any(axis=1))
    if flat.shape[1] == 1:
        _, first, which = np.unique(flat[live, 0], return_index=True, return_inverse=True)
    else:
        first, which = _first_seen([row.tobytes() for row in flat[live]])
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    place = np.full(len(flat), -1, dtype=np.int64)
    place[live] = rank[which.reshape(-1)]
    return place, np.ascontiguousarray(owners[live[first[order]]])


def _first_seen(keys: Sequence[bytes]) -> tuple[Owners, Owners]:
    """Where each distinct key comes first, and which of them each key is."""
    seen: dict[bytes, int] = {}
    which = [seen.setdefault(key, len(seen)) for key in keys]
    first = np.zeros(len(seen), dtype=np.int64)
    first[which[::-1]] = np.arange(len(keys))[::-1]
    return first, np.array(which, dtype=np.int64)


def compatible(owners: Owners) -> tuple[Owners, Owners]:
    """As `distinct`, but rows whose owners agree wherever both own something are one row, which owns all of it."""
    place, kept = distinct(owners)
    if not 1 < len(kept) <= MANY or kept.ndim == 1 or not (kept < 0).any():
        return place, kept
    flat = kept.reshape(len(kept), -1)
    hosts, count = np.empty_like(flat), 0
    into = np.empty(len(kept), dtype=np.int64)
    for u, row in enumerate(flat):
        known = hosts[:count]
        fits = np.flatnonzero(((known == row) | (known < 0) | (row < 0)).all(axis=1))
        into[u] = fits[0] if len(fits) else count
        count += not len(fits)
        hosts[into[u]] = np.where(row >= 0, row, hosts[into[u]] if len(fits) else -1)
    return np.where(place >= 0, into[place], -1), hosts[:count].reshape(count, *kept.shape[1:])
