"""Grouped matrix products: rows of one matrix, each multiplied with the matrix of its group, as experts are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from gramjd.engine import layout as layouts
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.node import NodeView, Operand, Rule, Send, SendFactor, SendGraph, Sends
from gramjd.engine.rules.groups import factor_of_groups, groups_of
from gramjd.engine.rules.matmul import bmm
from gramjd.engine.rules.vocabulary import MIXES, dense_fallback, named
from gramjd.kernels.tracing import to_numpy

Ends = tuple[int, ...]


def grouped(node: NodeView) -> Sends:
    """out [n, o] = self [n, i] @ mat2 [g, i, o], a group per run of rows that `offs` ends; or batches of matrices."""
    dims = [len(node.integers(f"{name}_sym_sizes")) for name in ("self", "mat2")]
    if dims == [3, 3]:
        return bmm(node)
    ends = to_numpy(node.saved("offs")).tolist() if dims == [2, 3] else []
    whole = bool(ends) and ends[-1] == node.output().shape[0]
    return _of_rows(node, tuple(int(end) for end in ends)) if whole else dense_fallback(node)


def _of_rows(node: NodeView, ends: Ends) -> Sends:
    given = [node.keep_only(c, {0}, MIXES) for c in node.cotangents()]
    weights = [_weights(node, c, ends) for c in given] if node.wants(1) else []
    if None in weights:
        yield from _apart(node, ends)
        return
    yield from (sent for sent in weights if sent is not None)
    for c in given:
        if node.wants(0):
            layout = layouts.carry(c.layout, c.shape, node.input(0).shape, {0: 0})
            yield node.send(0, layout, partial(_inputs, node, c, ends), donated=True)


def _inputs(node: NodeView, c: Cotangent, ends: Ends) -> Tensor:
    w: Tensor = node.saved("mat2").detach()
    product = getattr(functional, "grouped_mm", None)
    if product is not None:
        rows = [product(one.contiguous(), w.mT, offs=node.saved("offs")) for one in c.values]
        return torch.stack(rows) if len(rows) > 1 else rows[0].unsqueeze(0)
    parts = [c.values[:, lo:hi] @ w[g].mT for g, (lo, hi) in enumerate(pairwise((0, *ends))) if hi > lo]
    return torch.cat(parts, dim=1)


def _weights(node: NodeView, c: Cotangent, ends: Ends) -> Send | SendFactor | None:
    """The factor of all groups; None where padding them to one size would take more than their own products."""
    (n, o), (_, i, _) = c.shape, node.input(1).shape
    groups = groups_of(c.layout, (n, o), [hi - lo for lo, hi in pairwise((0, *ends))])
    if groups.wasteful(i * o):
        return None

    def load() -> tuple[Tensor, Tensor]:
        return node.saved("self").detach(), c.values

    return factor_of_groups(node, 1, groups, (o, i), True, load, c.dtype)


# -- as products of their own -----------------------------------------------------------------------------------------


def _apart(node: NodeView, ends: Ends) -> Sends:
    """Rows of a group are a product of their own: a parameter keeps a factor per group, of its own part."""
    operands = [_operand(node, name) for name in ("self", "mat2")]
    yield SendGraph(tuple(operands), partial(_products, ends=ends))


def _operand(node: NodeView, name: str) -> Operand:
    shape = tuple(node.integers(f"{name}_sym_sizes"))
    # What the other operand needs no gradient for is not saved, and only its shape matters.
    return Operand(shape, node.output().dtype, lambda: _saved(node, name, shape))


def _saved(node: NodeView, name: str, shape: tuple[int, ...]) -> Tensor:
    found: Tensor | None = node.saved(name)
    meta = node.output()
    return torch.zeros((), dtype=meta.dtype, device=meta.device).expand(shape) if found is None else found.detach()


def _products(operands: Sequence[Tensor | None], ends: Ends) -> list[Tensor]:
    x, w = operands
    assert x is not None
    assert w is not None
    parts = [x[lo:hi] @ w[g] for g, (lo, hi) in enumerate(pairwise((0, *ends))) if hi > lo]
    return [torch.cat(parts)]


RULES: dict[str, Rule] = named("GroupedMm", grouped)
