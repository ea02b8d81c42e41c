"""Operations that only copy elements, in any pattern: scatters of a slice, take, packing, rotations.

Which output element each input element was copied to follows from the operation, applied to the numbers 0, 1, 2, ..
(`_FORWARD`). Owners follow the elements; where they are constant along a dimension it is no batch axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gramjd.engine._torch import storage_of, untraced
from gramjd.engine.cotangent import Cotangent, index_tensor
from gramjd.engine.node import NodeView, Rule, Sends
from gramjd.engine.rules.strided import Numbers, Strided, owned_at
from gramjd.engine.rules.vocabulary import dense_fallback, named
from gramjd.engine.watch import watched
from gramjd.kernels.tracing import host

# Elements of which a plan may know where each goes.
MOST = 1 << 14
# For each edge, the output element that each of its elements was copied to (-1: none).
Sources = dict[int, Numbers]


def copies(sources_of: Callable[[NodeView], Sources | None]) -> Rule:
    """A rule from where elements are copied to; dense rows where the operation does more than copy."""

    def rule(node: NodeView) -> Sends:
        if set(node.arrivals) != {0} or node.output().dtype.is_complex:
            return dense_fallback(node)
        sources = sources_of(node)
        if sources is None:
            return dense_fallback(node)
        # A plan that is kept would keep them.
        node.reads_data |= sum(source.size for source in sources.values()) > MOST
        return _copies(node, sources)

    return rule


def _copies(node: NodeView, sources: Sources) -> Sends:
    for edge, source in sources.items():
        for cotangent in node.cotangents():
            layout = owned_at(cotangent.layout, source, node.input(edge).shape)
            if layout is not None:
                yield node.send(edge, layout, _loaded(cotangent, source))


def _loaded(cotangent: Cotangent, source: Numbers) -> Callable[[], Tensor]:
    return lambda: _copied(cotangent.values, source)


def _copied(values: Tensor, source: Numbers) -> Tensor:
    flat, place = values.reshape(len(values), -1), index_tensor(source.reshape(-1), values.device)
    taken = flat.index_select(1, place.clamp(min=0))
    return taken.masked_fill_(place < 0, 0).view(len(values), *source.shape)


# -- where elements go, by the operation ------------------------------------------------------------------------------

# From the elements' numbers of each input (None: not wanted, and its elements count as -1) to those of the output.
Forward = Callable[[NodeView, list[Tensor]], Tensor]


def by_forward(forward: Forward) -> Callable[[NodeView], Sources | None]:
    """Sources from the operation itself, applied to numbers."""

    def found(node: NodeView) -> Sources | None:
        with untraced():
            return sources(node)

    def sources(node: NodeView) -> Sources | None:
        sizes = [math.prod(node.input(e).shape) if node.wants(e) else 0 for e in range(len(node.inputs))]
        ends = np.cumsum([0, *sizes])
        ladders = [
            torch.arange(int(ends[e]), int(ends[e + 1])).view(node.input(e).shape)
            if node.wants(e)
            else torch.tensor(-1)
            for e in range(len(node.inputs))
        ]
        out = forward(node, ladders).reshape(-1).numpy()
        places = np.flatnonzero(out >= 0)
        if len(np.unique(out[places])) < len(places):
            return None  # an element was copied to several places, whose cotangents would have to be added up
        source = np.full(int(ends[-1]), -1, dtype=np.int64)
        source[out[places]] = places
        return {e: source[int(ends[e]) : int(ends[e + 1])].reshape(node.input(e).shape) for e in node.wanted}

    return found


def _whole(node: NodeView, ladder: Tensor) -> Tensor:
    """Numbers of the input that is written into, in the shape of the output."""
    return ladder.expand(node.output().shape)


def _index_copy(node: NodeView, ladders: list[Tensor]) -> Tensor:
    index = host(node.saved("index")).reshape(-1)
    base = _whole(node, ladders[0])
    if not base.ndim:
        return ladders[1].reshape(())
    dim = node.dim()
    into = list(base.shape)
    into[dim] = len(index)
    return base.index_copy(dim, index, ladders[1].expand(into))


def _index_fill(node: NodeView, ladders: list[Tensor]) -> Tensor:
    value = int(ladders[1]) if node.wants(1) else -1
    return _whole(node, ladders[0]).index_fill(node.dim(), host(node.saved("index")), value)


def _masked_scatter(node: NodeView, ladders: list[Tensor]) -> Tensor:
    mask, base = host(node.saved("mask")), _whole(node, ladders[0])
    given = ladders[1] if node.wants(1) else torch.full((base.numel(),), -1)
    return base.masked_scatter(mask.expand(base.shape), given)


def _select_scatter(node: NodeView, ladders: list[Tensor]) -> Tensor:
    base, dim, index = _whole(node, ladders[0]), node.dim(), node.integer("index")
    return base.select_scatter(ladders[1].expand(base.select(dim, index).shape), dim, index)


def _slice_scatter(node: NodeView, ladders: list[Tensor]) -> Tensor:
    base, dim, step = _whole(node, ladders[0]), node.dim(), node.integer("step")
    start, end = (None if node.saved(name) is None else node.integer(name) for name in ("start", "end"))
    where = (slice(None),) * dim + (slice(start, end, step),)
    return base.slice_scatter(ladders[1].expand(base[where].shape), dim, start, end, step)


def _diagonal_scatter(node: NodeView, ladders: list[Tensor]) -> Tensor:
    base, options = _whole(node, ladders[0]), _diagonal_options(node)
    return base.diagonal_scatter(ladders[1].expand(base.diagonal(*options).shape), *options)


def _diagonal_options(node: NodeView) -> tuple[int, int, int]:
    return node.integer("offset"), node.integer("dim1"), node.integer("dim2")


def _diag_embed(node: NodeView, ladders: list[Tensor]) -> Tensor:
    return (ladders[0] + 1).diag_embed(*_diagonal_options(node)) - 1


def _block_diagonal(node: NodeView, ladders: list[Tensor]) -> Tensor:
    out = torch.full(node.output().shape, -1)
    row = column = 0
    for ladder in ladders:
        block = ladder.reshape(1, -1) if ladder.ndim < 2 else ladder
        out[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return out


def _block_diag(node: NodeView) -> Sources | None:
    # Where blocks lie depends on those before them, also on those that need no gradient.
    return by_forward(_block_diagonal)(node) if len(node.wanted) == len(node.inputs) else by_watching(node)


def _packed(node: NodeView, ladders: list[Tensor]) -> Tensor:
    steps = ladders[0].transpose(0, 1) if node.saved("batch_first") else ladders[0]
    return torch.cat([steps[t, : int(n)] for t, n in enumerate(host(node.saved("result1")))])


# -- where elements go, by watching the node --------------------------------------------------------------------------


def by_watching(node: NodeView) -> Sources | None:
    """Sources from which part of the cotangent each result is a view of."""
    meta = node.output()
    seen = watched(node.handle, meta.shape, meta.dtype)
    node.reads_data = True
    if seen is None:
        return None
    memory = storage_of(seen.cotangent)
    found: Sources = {}
    for edge in node.wanted:
        result = seen.results[edge]
        if result is None or storage_of(result) != memory:
            return None
        found[edge] = Strided.of(result).addresses()
    return found


_FORWARD: dict[str, Forward] = {
    "ChannelShuffle": lambda node, ladders: torch.channel_shuffle(ladders[0].double(), node.integer("groups")).long(),
    "DiagEmbed": _diag_embed,
    "Diagonal": lambda node, ladders: ladders[0].diagonal(*_diagonal_options(node)),
    "DiagonalScatter": _diagonal_scatter,
    "IndexCopy": _index_copy,
    "IndexFill": _index_fill,
    "MaskedScatter": _masked_scatter,
    "PackPaddedSequence": _packed,
    "Rot90": lambda node, ladders: ladders[0].rot90(node.integer("k"), node.integers("dims")),
    "SelectScatter": _select_scatter,
    "SliceScatter": _slice_scatter,
    "Take": lambda node, ladders: ladders[0].take(host(node.saved("index"))),
}

RULES: dict[str, Rule] = {
    **{key: copies(by_forward(f)) for name, f in _FORWARD.items() for key in named(name, f)},
    **named("BlockDiag", copies(_block_diag)),
}
