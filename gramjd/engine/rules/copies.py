"""Operations that only copy elements, in any pattern: in-place writes to a slice, as_strided, take, packing, rotations.

Which output element each input element was copied to is found by asking the node: the numbers 1, 2, .. are sent through
it, and random numbers check that what comes back is a copy. Owners follow the elements; where they are constant along a
dimension it is no batch axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.autograd import pull
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.layout import Piece, Rows
from gramjd.engine.node import NodeView
from gramjd.engine.rules.vocabulary import Rule, named, opaque


def selection(visit: NodeView) -> None:
    """Ask the node which element goes where; dense rows if it does more than copy."""
    if set(visit.arrivals) != {0} or visit.output().dtype.is_complex:
        opaque(visit)
        return
    sources = _sources(visit)
    if sources is None:
        opaque(visit)
        return
    for edge, source in enumerate(sources):
        if not visit.wants(edge) or source is None:
            continue
        for group in visit.groups():
            layout = _owned(group, source, visit.input(edge).shape)
            if layout is not None:
                visit.send(edge, layout, None if visit.dry else _copied(group.values, source))


def _sources(visit: NodeView) -> list[Tensor | None] | None:
    """For each edge the output element that each of its elements was copied to (-1: none); None if that is not so."""
    meta = visit.output()
    count = math.prod(meta.shape)
    ladder = torch.arange(1, count + 1, dtype=torch.float64, device=meta.device).view(1, *meta.shape)
    # In float32, which a node of that type may round to on the way, the check is the same number.
    noise = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float32) + 0.5
    noise = noise.to(meta.device, torch.float64)
    try:
        places = pull(visit.node, [ladder])
        checks = pull(visit.node, [noise.view(ladder.shape)])
    except RuntimeError:
        return None
    out: list[Tensor | None] = []
    for edge, (place, check) in enumerate(zip(places, checks, strict=True)):
        if not visit.wants(edge) or place is None or check is None:
            out.append(None)
            continue
        source = place[0].to(torch.int64) - 1
        valid = (source >= -1) & (source < count)
        expected = torch.where(source >= 0, noise[source.clamp(0, count - 1)], 0.0)
        if place.shape[1:] != visit.input(edge).shape or not bool((valid & (expected == check[0])).all()):
            return None
        out.append(source)
    return out


def _owned(group: Cotangent, source: Tensor, shape: Sequence[int]) -> layouts.Layout | None:
    layout = group.layout
    if not layout.diagonal:
        return layouts.dense(layout.rows, math.prod(shape))
    sizes = [p.size for p in layout.pieces]
    owners = layout.rows
    for axis, piece in enumerate(layout.pieces):
        if not piece.diagonal:
            owners = np.expand_dims(owners, 1 + axis)
    everyone = np.broadcast_to(owners, (layout.stacked, *sizes)).reshape(layout.stacked, -1)
    index = source.reshape(-1).cpu().numpy()
    mine = np.where(index >= 0, everyone[:, index.clip(0)], -1).reshape(layout.stacked, *shape)
    return coarsened(mine, shape) if (mine >= 0).any() else None


def coarsened(owners: Rows, shape: Sequence[int]) -> layouts.Layout:
    """The layout of owners known element by element: dimensions along which they are constant are no batch axis."""
    pieces = []
    for dim, size in enumerate(shape):
        best = owners.max(axis=1 + dim, keepdims=True)
        constant = bool(((owners == best) | (owners < 0)).all())
        owners = best if constant else owners
        pieces.append(Piece(size, not constant))
    squeezed = owners.reshape(len(owners), *(p.size for p in pieces if p.diagonal))
    return layouts.canonical(pieces, squeezed)


def _copied(values: Tensor, source: Tensor) -> Tensor:
    flat = values.reshape(len(values), -1)
    taken = flat.index_select(1, source.reshape(-1).clamp(min=0))
    return taken.masked_fill_((source.reshape(-1) < 0), 0).view(len(values), *source.shape)


_NAMES = """
    AsStrided AsStridedScatter BlockDiag ChannelShuffle DiagEmbed Diagonal DiagonalScatter IndexCopy IndexFill
    IndexPutImpl MaskedScatter PackPaddedSequence Rot90 SelectScatter SliceScatter Take
"""

RULES: dict[str, Rule] = {"torch::autograd::CopySlices": selection, **named(_NAMES, selection)}
