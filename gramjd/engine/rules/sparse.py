"""Products whose left operand may be a sparse matrix, such as the edges of graphs that lie in one list.

Where losses own rows of the product, the entries of the matrix decide who owns a row of the right operand.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.node import NodeView, Rule, Sends
from gramjd.engine.rules import matmul
from gramjd.engine.rules.indexing import MOST_READERS, moved, readers
from gramjd.engine.rules.vocabulary import MIXES, dense_fallback, each, named, of_real, whole
from gramjd.kernels.tracing import to_numpy


def mm(node: NodeView) -> Sends:
    """out [p, q] = self @ mat2. Whether `self` is sparse matters where it is constant and mixes rows of the batch."""
    if node.wants(0) or node.parametric(1) or not any(_rows_owned(c) for c in node.cotangents()):
        return matmul.mm(node)
    matrix: Tensor = node.saved("self")
    return matmul.mm(node) if matrix.layout == torch.strided else _sparse_mm(node)


def _rows_owned(c: Cotangent) -> bool:
    where = layouts.diagonal_dims(c.layout, c.shape)
    return where is not None and 0 in where


@each
def _sparse_mm(node: NodeView, c: Cotangent) -> Sends:
    yield from sparse_product(node, 1, c, node.saved("self"))


def sparse_addmm(node: NodeView) -> Sends:
    """out [p, q] = beta * self + alpha * mat1 [p, r] @ mat2 [r, q] for a sparse mat1 that is no variable."""
    return dense_fallback(node) if node.wants(1) else _sparse_added(node)


@each
def _sparse_added(node: NodeView, c: Cotangent) -> Sends:
    alpha, beta = float(node.saved("alpha")), float(node.saved("beta"))
    yield node.send(0, c.layout, lambda: c.values * beta, node.output().shape)
    if node.wants(2):
        yield from sparse_product(node, 2, c, node.saved("mat1"), alpha)


def sparse_product(node: NodeView, edge: int, c: Cotangent, matrix: Tensor, scale: float = 1.0) -> Sends:
    """x [r, q] of `scale * matrix @ x`: the rows of a column's entries decide who owns a row of x."""
    c = whole(node, c)
    r, q = node.input(edge).shape
    if 0 in (layouts.diagonal_dims(c.layout, c.shape) or ()):
        into, of = to_numpy(matrix.to_sparse_coo().coalesce().indices())
        slots = readers(c.layout, c.shape, 0, into, of)
        if slots.size and slots.max() < MOST_READERS:
            for slot in range(int(slots.max()) + 1):
                mine = slots == slot
                layout = moved(c.layout, c.shape, 0, into[mine], of[mine], r)
                if layout is not None:
                    yield node.send(edge, layout, partial(_by_sparse, c, _entries(matrix, mine), scale))
            return
        c = node.densified(c, {0}, MIXES)
    layout = layouts.carry(c.layout, c.shape, (r, q), {1: 1})
    yield node.send(edge, layout, partial(_by_sparse, c, matrix, scale))


def _entries(matrix: Tensor, mine: npt.NDArray[np.bool_]) -> Tensor:
    """Some entries of a sparse matrix."""
    if mine.all():
        return matrix
    whole = matrix.to_sparse_coo().coalesce()
    some = torch.from_numpy(np.flatnonzero(mine)).to(matrix.device)
    return torch.sparse_coo_tensor(
        whole.indices().index_select(1, some),
        whole.values().index_select(0, some),
        matrix.shape,
        check_invariants=False,
    )


def _by_sparse(c: Cotangent, matrix: Tensor, scale: float) -> Tensor:
    K, p, q = c.values.shape
    turned = matrix.t().conj() if matrix.is_complex() else matrix.t()
    found = turned @ c.values.transpose(0, 1).reshape(p, K * q)
    return found.view(-1, K, q).transpose(0, 1) * scale


RULES: dict[str, Rule] = {
    **named("Mm", mm),
    **named("SparseAddmm", of_real(sparse_addmm)),
}
