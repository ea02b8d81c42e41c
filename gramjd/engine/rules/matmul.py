"""Matrix products. Every one is brought to `out[g, p, q] = A[g, p, r] B[g, r, q]`.

The gradient of one operand sums over the dimension it lacks (q for A, p for B). Where a batch axis lies in that
dimension there is no sum over it: its slices are rows, and at a parameter they stay a product (an Outer factor).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.factor import Outer
from gramjd.engine.layout import Layout, Piece, canonical
from gramjd.engine.node import NodeView
from gramjd.engine.rules.vocabulary import CUTS, MIXES, Rule, each, named, of_real, opaque, written_over
from gramjd.kernels.products import product as product_of

Load = Callable[[], Tensor]


class Operand(NamedTuple):
    """One factor of the product: its edge, how to read the *other* operand as [g, p, r] / [g, r, q], and a scale."""

    edge: int
    left: bool
    other: Load
    scale: float = 1.0


def product(visit: NodeView, groups: list[Cotangent], shape: tuple[int, ...], operands: list[Operand]) -> None:
    """Send the cotangents of both operands of `out [g, p, q]`, a parameter's first."""
    operands = sorted(operands, key=lambda operand: not (visit.wants(operand.edge) and visit.parametric(operand.edge)))
    for group in groups:
        whole = Cotangent(group.layout, group.values.reshape(-1, *shape), owned=group.owned)
        if layouts.split(whole.layout, shape) is None:
            whole = visit.densified(whole, None, CUTS)
        for operand in operands:
            if visit.wants(operand.edge):
                _gradient(visit, operand, whole)


def _gradient(visit: NodeView, operand: Operand, group: Cotangent) -> None:
    own = layouts.diagonal_dims(group.layout, group.shape)
    assert own is not None, "made whole by the caller"
    summed = 2 if operand.left else 1
    kept = 3 - summed
    if kept not in own and 0 not in own and visit.parametric(operand.edge):
        _send_outer(visit, operand, group, summed)
    elif summed in own:
        _send_rows(visit, operand, group, summed)
    else:
        _send_product(visit, operand, group, kept)


def _send_product(visit: NodeView, operand: Operand, group: Cotangent, kept: int) -> None:
    """No batch axis is summed over: an ordinary product, stacked rows in front."""
    target = visit.input(operand.edge).shape
    g, p, q = group.shape

    def of_rows(rows: Tensor) -> Tensor:
        return _scaled(product_of(rows, operand.other()[0].T), operand.scale)

    def compute() -> Tensor:
        if g == 1 and operand.left:
            return of_rows(group.values.reshape(-1, q)).view(-1, *target)
        other, C = operand.other(), group.values
        if g == 1 and len(C) == 1:
            out = product_of(other[0].T, C[0, 0])
        else:
            out = C @ other.mT if operand.left else other.mT @ C
        return _scaled(out.reshape(-1, *target), operand.scale)

    r = math.prod(target) // (g * (p if operand.left else q))
    inner = (g, p, r) if operand.left else (g, r, q)
    layout = layouts.carry(group.layout, group.shape, inner, {0: 0, kept: kept})
    if g == 1 and operand.left and len(target) == 2:
        rows = Cotangent(group.layout, group.values.view(-1, p, q), owned=group.owned)
        parameters = [edge for edge in range(len(visit.edges)) if edge != operand.edge]
        found = written_over(visit, rows, operand.edge, parameters, lambda rows, which: of_rows(rows))
        if found is not None:
            visit.send(operand.edge, layout, found.view(-1, *target), owned=True)
            return
    visit.send(operand.edge, layout, compute, owned=True)


class _Axis(NamedTuple):
    """A dimension as batch b and positions T: its pieces in order, the permutation that puts diagonal ones first."""

    b: int
    T: int
    sizes: tuple[int, ...]
    order: tuple[int, ...]


@layouts.remembered
def _axis(layout: Layout, shape: tuple[int, ...], dim: int) -> _Axis:
    cut = layouts.split(layout, shape)
    assert cut is not None, "made whole by the caller"
    inside = [p for p in cut[0] if p.dim == dim]
    own = [n for n, p in enumerate(inside) if p.diagonal]
    rest = [n for n, p in enumerate(inside) if not p.diagonal]
    b, T = (math.prod(inside[n].size for n in part) for part in (own, rest))
    return _Axis(b, T, tuple(p.size for p in inside), (*own, *rest))


def _unfold(t: Tensor, axis: int, group: Cotangent, dim: int) -> Tensor:
    """Axis `axis` of t (of the size of `dim`) as two: b (batch) and T (positions)."""
    b, T, sizes, order = _axis(group.layout, tuple(group.shape), dim)
    before, after = t.shape[:axis], t.shape[axis + 1 :]
    if order == tuple(range(len(order))):
        return t.reshape(*before, b, T, *after)
    n = len(sizes)
    split = t.reshape(*before, *sizes, *after)
    perm = [*range(axis), *(axis + a for a in order), *range(axis + n, split.ndim)]
    return split.permute(perm).reshape(*before, b, T, *after)


def batched(group: Cotangent, other: Tensor) -> tuple[Tensor, Tensor, layouts.Rows]:
    """`other [g, L, *]` and the cotangent [K, g, L, o] with L as batch and positions [b, T], and the owners [K b]."""
    return _unfold(other, 1, group, 1), _unfold(group.values, 2, group, 1), group.layout.rows.reshape(-1)


def _send_outer(visit: NodeView, operand: Operand, group: Cotangent, summed: int) -> None:
    """At a parameter: rows stay products of the other operand and the cotangent, T = positions without a batch axis."""
    g = group.shape[0]
    c = group.values.mT if operand.left else group.values  # [K, g, L, o]
    c = _scaled(_unfold(c, 2, group, summed), operand.scale)
    if visit.dry:
        i = math.prod(visit.input(operand.edge).shape) // (g * c.shape[-1])
        x = torch.empty(g, *c.shape[2:4], i, dtype=c.dtype, device="meta")
    else:
        other = operand.other()
        x = _unfold(other.mT if operand.left else other, 1, group, summed)  # [g, b, T, i]
    o, i = c.shape[-1], x.shape[-1]
    matrix = (o, i) if operand.left else (i, o)
    shape = (g, *matrix) if g > 1 else matrix
    factor = Outer(group.layout.rows.reshape(-1), shape, visit.name, x, c, flipped=not operand.left)
    visit.send_factor(operand.edge, factor)


def _send_rows(visit: NodeView, operand: Operand, group: Cotangent, summed: int) -> None:
    """A batch axis is summed over on the way to something that is no parameter: a product for each slice."""
    cut = layouts.split(group.layout, group.shape)
    assert cut is not None, "made whole by the caller"
    pieces, rows = cut
    g, p, q = group.shape
    target = visit.input(operand.edge).shape
    b = _axis(group.layout, tuple(group.shape), summed).b
    axes = [a for a, x in enumerate(x for x in pieces if x.diagonal) if x.dim == summed]
    stay = [a for a in range(rows.ndim - 1) if a not in axes]
    moved = rows.transpose([0, *(1 + a for a in axes), *(1 + a for a in stay)])
    moved = moved.reshape(rows.shape[0] * b, *moved.shape[1 + len(axes) :])
    i = math.prod(target) // (g * (p if operand.left else q))
    inner = (g, p, i) if operand.left else (g, i, q)
    layout = _rest_layout(pieces, summed, moved, inner, operand.left)
    if not layout.diagonal:
        visit.note_sum(operand.edge, layout)
    visit.ledger.charge(len(moved) * math.prod(target) * group.values.element_size())

    def compute() -> Tensor:
        other = operand.other()
        x = _unfold(other.mT if operand.left else other, 1, group, summed)  # [g, b, T, i]
        c = _unfold(group.values.mT if operand.left else group.values, 2, group, summed)  # [K, g, b, T, o]
        J = torch.matmul(c.mT, x) if operand.left else torch.matmul(x.mT, c)  # [K, g, b, o, i] or [K, g, b, i, o]
        return _scaled(J.transpose(1, 2).reshape(len(moved), *target), operand.scale)

    visit.send(operand.edge, layout, compute, owned=True)


def _rest_layout(
    pieces: list[Piece], summed: int, rows: layouts.Rows, inner: tuple[int, int, int], left: bool
) -> Layout:
    kept = 1 if left else 2
    out: list[Piece] = []
    for dim in range(3):
        mine = [p for p in pieces if p.dim == dim] if dim in (0, kept) else [Piece(inner[dim], False)]
        out += mine
    return canonical(out, rows)


def _scaled(values: Tensor, scale: float) -> Tensor:
    return values if scale == 1 else values * scale


def _as3(t: Tensor) -> Tensor:
    return t if t.ndim == 3 else t.unsqueeze(0)


def mm(visit: NodeView) -> None:
    """out [p, q] = self @ mat2."""
    shape = (1, *visit.output().shape)
    operands = [
        Operand(0, True, lambda: _as3(visit.saved("mat2"))),
        Operand(1, False, lambda: _as3(visit.saved("self"))),
    ]
    product(visit, visit.groups(), shape, operands)


def bmm(visit: NodeView) -> None:
    """out [g, p, q] = self @ mat2."""
    operands = [Operand(0, True, lambda: visit.saved("mat2")), Operand(1, False, lambda: visit.saved("self"))]
    product(visit, visit.groups(), visit.output().shape, operands)


def addmm(visit: NodeView) -> None:
    """out = beta * self + alpha * mat1 @ mat2; self broadcasts."""
    _affine(visit, "mat1", "mat2", visit.output().shape)


def baddbmm(visit: NodeView) -> None:
    """out = beta * self + alpha * batch1 @ batch2; self broadcasts."""
    _affine(visit, "batch1", "batch2", visit.output().shape)


def _affine(visit: NodeView, first: str, second: str, shape: tuple[int, ...]) -> None:
    alpha = float(visit.saved("alpha"))
    _added(visit)
    operands = [
        Operand(1, True, lambda: _as3(visit.saved(second)), alpha),
        Operand(2, False, lambda: _as3(visit.saved(first)), alpha),
    ]
    product(visit, visit.groups(), (1, *shape)[-3:], operands)


@each
def _added(visit: NodeView, group: Cotangent) -> None:
    """The summand `beta * self`, which broadcasts."""
    beta = float(visit.saved("beta"))
    visit.send(0, group.layout, lambda: _scaled(group.values, beta), visit.output().shape)


def mv(visit: NodeView) -> None:
    """out [p] = self [p, r] @ vec [r]."""
    operands = [
        Operand(0, True, lambda: visit.saved("vec")[None, :, None]),
        Operand(1, False, lambda: visit.saved("self")[None]),
    ]
    product(visit, visit.groups(), (1, visit.output().shape[0], 1), operands)


def addmv(visit: NodeView) -> None:
    """out [p] = beta * self + alpha * mat @ vec."""
    alpha = float(visit.saved("alpha"))
    _added(visit)
    operands = [
        Operand(1, True, lambda: visit.saved("vec")[None, :, None], alpha),
        Operand(2, False, lambda: visit.saved("mat")[None], alpha),
    ]
    product(visit, visit.groups(), (1, visit.output().shape[0], 1), operands)


def dot(visit: NodeView) -> None:
    """out = self . tensor."""
    names = ("tensor", "self") if "Vdot" not in visit.name else ("other", "self")
    operands = [
        Operand(0, True, lambda: visit.saved(names[0])[None, :, None]),
        Operand(1, False, lambda: visit.saved(names[1])[None, None, :]),
    ]
    product(visit, visit.groups(), (1, 1, 1), operands)


def trilinear(visit: NodeView) -> None:
    """nn.Bilinear: out [n, o] = x1 [n, a] weight [o, a, b] x2 [n, b]; other patterns of `_trilinear` go dense."""
    pattern = [visit.integers(name) for name in ("expand1", "expand2", "expand3", "sumdim")]
    if pattern != [[1, 3], [0], [1, 2], [2, 3]]:
        opaque(visit)
        return
    for group in visit.groups():
        group = visit.keep_only(group, {0}, MIXES)
        _bilinear_input(visit, group, 0, "kno,oab,nb->kna", "i3")
        _bilinear_input(visit, group, 2, "kno,oab,na->knb", "i1")
        if visit.wants(1):
            _bilinear_weight(visit, group)


def _bilinear_input(visit: NodeView, group: Cotangent, edge: int, equation: str, other: str) -> None:
    if visit.wants(edge):
        layout = layouts.carry(group.layout, group.shape, visit.input(edge).shape, {0: 0})
        visit.send(edge, layout, lambda: torch.einsum(equation, group.values, visit.saved("i2"), visit.saved(other)))


def _bilinear_weight(visit: NodeView, group: Cotangent) -> None:
    o, a, b = visit.input(1).shape
    n = group.shape[0]
    whole = Cotangent(group.layout, group.values.reshape(-1, 1, n, o))
    if visit.dry:
        pairs = torch.empty(1, n, a * b, device="meta", dtype=group.values.dtype)
    else:
        pairs = (visit.saved("i1")[:, :, None] * visit.saved("i3")[:, None, :]).view(1, n, a * b)
    x, c, rows = batched(whole, pairs)
    factor = Outer(rows, (o, a * b), visit.name, x, c)
    (visit.send_factor if visit.parametric(1) else visit.send_rows)(1, factor)


RULES: dict[str, Rule] = {
    **named("Mm", of_real(mm)),
    **named("Bmm", of_real(bmm)),
    **named("Addmm", of_real(addmm)),
    **named("Baddbmm", of_real(baddbmm)),
    **named("Mv", of_real(mv)),
    **named("Addmv", of_real(addmv)),
    **named("Dot Vdot", of_real(dot)),
    **named("Trilinear", trilinear),
}
