"""Bags of embeddings: rows of a table summed, averaged or compared, bag by bag.

Every id of a sum is a sample of its own, with its bag's owner; a maximum reads one number of the table per feature.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.node import NodeView, Operand, Rule, Send, SendFactor, Sends
from gramjd.engine.rules.indexing import CUTS, table
from gramjd.engine.rules.vocabulary import dense_fallback, gathered, named
from gramjd.kernels.tracing import to_numpy

MEAN, MAX = 1, 2


def embedding_bag(node: NodeView) -> Sends:
    """out [bags, d] of a table, ids [n] and where each bag begins; ids may have weights, learned ones as well.

    What a scale by frequency is, only the node tells: PyTorch does not count as its documentation says.
    """
    if node.saved("scale_grad_by_freq"):
        return dense_fallback(node)
    return _largest(node) if node.integer("mode") == MAX else _bags(node)


def _bags(node: NodeView) -> Sends:
    ids: Tensor = node.saved("indices")
    bag = _bag_of(node, ids)
    padding = node.integer("padding_idx")
    live = ids != padding if padding >= 0 else torch.ones_like(ids, dtype=torch.bool)
    scale = node.once(lambda: _weights(node, ids, bag, live))
    for c in (node.keep_only(c, {0}, CUTS) for c in node.cotangents()):
        if node.wants(0):
            yield _bag(node, c, ids[live], bag[live], scale)
        layout = gathered(c.layout, c.shape, 0, to_numpy(bag)) if node.wants(1) else None
        if layout is not None:
            own = layouts.carry(layout, (len(ids), c.shape[1]), (len(ids),), {0: 0})
            yield node.send(1, own, _along_rows(node, c, ids, bag, live))


def _bag_of(node: NodeView, ids: Tensor) -> Tensor:
    offsets: Tensor = node.saved("offsets")
    places = torch.arange(len(ids), device=ids.device)
    return torch.searchsorted(offsets[: node.output().shape[0]].contiguous(), places, right=True) - 1


def _weights(node: NodeView, ids: Tensor, bag: Tensor, live: Tensor) -> Tensor:
    """What each id that is no padding counts with."""
    dtype, bags = node.output().dtype, node.output().shape[0]
    given = node.saved("per_sample_weights")
    found: Tensor = torch.ones_like(ids[live], dtype=dtype)
    if given is not None and given.numel():
        found = given[live].to(dtype)
    elif node.integer("mode") == MEAN:
        found = 1 / torch.bincount(bag[live], minlength=bags)[bag[live]].to(dtype)
    return found


def _bag(node: NodeView, c: Cotangent, ids: Tensor, bag: Tensor, weight: Callable[[], Tensor]) -> Send | SendFactor:
    index, K, d = to_numpy(bag), c.layout.stacked, c.shape[-1]
    diagonal = c.layout.diagonal
    owners, place = c.layout.owners, 1
    if diagonal:
        parts = layouts.along(c.layout, c.shape, 0)
        assert parts is not None, "kept to whole dimensions above"
        owners, place = parts[2][:, index].reshape(-1), 2

    def load() -> Tensor:
        return (c.values[:, bag] * weight()[:, None]).unsqueeze(place)

    shape = (K, len(index), 1, d) if diagonal else (K, 1, len(index), d)
    numbers = ids[:, None] if diagonal else ids[None]
    return table(
        node,
        owners,
        Operand(tuple(numbers.shape), ids.dtype, lambda: numbers, is_ids=True),
        Operand(shape, c.dtype, load),
    )


def _along_rows(node: NodeView, c: Cotangent, ids: Tensor, bag: Tensor, live: Tensor) -> Callable[[], Tensor]:
    """What the weight of each id receives: the cotangent of its bag along its row of the table."""

    def compute() -> Tensor:
        rows: Tensor = node.saved("weight")[ids]
        return (c.values[:, bag] * rows).sum(-1).masked_fill(~live, 0)

    return compute


def _largest(node: NodeView) -> Sends:
    """Each feature of a bag is read at one id: as many positions as features, each with one number."""
    # An empty bag reads nothing, whatever it says.
    empty: Tensor = node.saved("result2") == 0
    chosen: Tensor = node.saved("result3")
    for c in (node.keep_only(c, {0}, CUTS) for c in node.cotangents()):
        if node.wants(0):
            yield _read_once(node, c, chosen, empty)


def _read_once(node: NodeView, c: Cotangent, chosen: Tensor, empty: Tensor) -> Send | SendFactor:
    bags, d = c.shape
    K, diagonal = c.layout.stacked, c.layout.diagonal
    parts = layouts.along(c.layout, c.shape, 0) if diagonal else None
    owners = c.layout.owners if parts is None else np.ascontiguousarray(parts[2]).reshape(-1)

    def load() -> Tensor:
        return torch.diag_embed(c.values.masked_fill(empty[:, None], 0)).reshape(shape)

    shape = (K, bags, d, d) if diagonal else (K, 1, bags * d, d)
    numbers = chosen.clamp(min=0).reshape(shape[1:3])
    return table(
        node,
        owners,
        Operand(tuple(numbers.shape), numbers.dtype, lambda: numbers, is_ids=True),
        Operand(shape, c.dtype, load),
    )


RULES: dict[str, Rule] = named("EmbeddingBag", embedding_bag)
