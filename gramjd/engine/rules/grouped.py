"""Grouped matrix products: rows of one matrix, each multiplied with the matrix of its group, as experts are.

Rows of a group are a product of their own, so the node is walked as those products: a parameter keeps a factor per
group, of its own part.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from gramjd.engine.node import NodeView, Operand, Rule, SendGraph, Sends
from gramjd.engine.rules.matmul import bmm
from gramjd.engine.rules.vocabulary import dense_fallback, named
from gramjd.kernels.tracing import to_numpy


def grouped(node: NodeView) -> Sends:
    """out [n, o] = self [n, i] @ mat2 [g, i, o], a group per run of rows that `offs` ends; or batches of matrices."""
    dims = [len(node.integers(f"{name}_sym_sizes")) for name in ("self", "mat2")]
    if dims == [3, 3]:
        return bmm(node)
    ends = to_numpy(node.saved("offs")).tolist() if dims == [2, 3] else []
    whole = bool(ends) and ends[-1] == node.output().shape[0]
    return _apart(node, [int(end) for end in ends]) if whole else dense_fallback(node)


def _apart(node: NodeView, ends: list[int]) -> Sends:
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


def _products(operands: Sequence[Tensor | None], ends: list[int]) -> list[Tensor]:
    x, w = operands
    assert x is not None
    assert w is not None
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    pairs = [(part, g) for g, part in enumerate(x.split(sizes)) if len(part)]
    return [torch.cat([part @ w[g] for part, g in pairs])]


RULES: dict[str, Rule] = named("GroupedMm", grouped)
