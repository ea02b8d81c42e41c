"""Matrix products. Every one is brought to `out[g, p, q] = A[g, p, r] B[g, r, q]`.

The gradient of one operand sums over the dimension it lacks (q for A, p for B). Where a batch axis lies in that
dimension there is no sum over it: its slices are rows, and at a parameter they stay a product (an Outer factor).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.cotangent import Cotangent, densify
from gramjd.engine.gaps import compatible
from gramjd.engine.layout import Layout, Owners, Piece, canonical
from gramjd.engine.node import NodeView, Operand, Rule, Send, SendFactor, Sends
from gramjd.engine.rules.groups import factor_of_groups, groups_of, make_outer
from gramjd.engine.rules.vocabulary import CUTS, MIXES, dense_fallback, each, named, of_real, overwrite
from gramjd.kernels.products import product as product_of

Load = Callable[[], Tensor]


class Side(NamedTuple):
    """One factor of the product: its edge, how to read the *other* one as [g, p, r] / [g, r, q], and a scale."""

    edge: int
    left: bool
    other: Load
    scale: complex = 1.0


def product(node: NodeView, shape: tuple[int, ...], sides: Sequence[Side]) -> Sends:
    """What both operands of `out [g, p, q]` receive, a parameter's first."""
    wanted = [side for side in sides if node.wants(side.edge)]
    wanted.sort(key=lambda side: not node.parametric(side.edge))
    for cotangent in node.cotangents():
        c = cotangent.viewed(*shape)
        if layouts.split(c.layout, shape) is None:
            c = node.densified(c, None, CUTS)
        for side in wanted:
            yield _gradient(node, side, c)


def _gradient(node: NodeView, side: Side, c: Cotangent) -> Send | SendFactor:
    own = layouts.diagonal_dims(c.layout, c.shape)
    assert own is not None, "made whole by the caller"
    summed = 2 if side.left else 1
    kept = 3 - summed
    # Factors hold real numbers.
    real = not node.output().dtype.is_complex
    if kept not in own and 0 not in own and real and (node.parametric(side.edge) or summed in own):
        return _outer(node, side, c, summed)
    if kept not in own and own >= {0, summed} and real and node.parametric(side.edge):
        return _outer_of_groups(node, side, c, summed)
    if summed in own:
        return _rows(node, side, c, summed)
    return _product(node, side, c, kept)


def _product(node: NodeView, side: Side, c: Cotangent, kept: int) -> Send:
    """No batch axis is summed over: an ordinary product, stacked rows in front."""
    target = node.input(side.edge).shape
    g, p, q = c.shape

    def of_rows(rows: Tensor) -> Tensor:
        return _scaled(product_of(rows, side.other()[0].T), side.scale)

    def compute() -> Tensor:
        if g == 1 and side.left:
            return of_rows(c.values.reshape(-1, q)).view(-1, *target)
        other, C = side.other(), c.values
        if g == 1 and len(C) == 1:
            return _scaled(product_of(other[0].T, C[0, 0]).reshape(-1, *target), side.scale)
        return _scaled((C @ other.mT if side.left else other.mT @ C).reshape(-1, *target), side.scale)

    r = math.prod(target) // (g * (p if side.left else q))
    inner = (g, p, r) if side.left else (g, r, q)
    layout = layouts.carry(c.layout, c.shape, inner, {0: 0, kept: kept})
    over = None
    if g == 1 and side.left and len(target) == 2:
        parameters = [edge for edge in range(len(node.inputs)) if edge != side.edge]
        over = overwrite(node, c.viewed(p, q), side.edge, parameters, lambda rows, which: of_rows(rows))
    return Send(side.edge, layout, compute, donated=True, over=over)


class _Axis(NamedTuple):
    """A dimension as batch b and positions T: its pieces in order, the permutation that puts diagonal ones first."""

    b: int
    T: int
    sizes: tuple[int, ...]
    order: tuple[int, ...]


@layouts.cached
def _axis(layout: Layout, shape: tuple[int, ...], dim: int) -> _Axis:
    cut = layouts.split(layout, shape)
    assert cut is not None, "made whole by the caller"
    inside = [p for p in cut[0] if p.dim == dim]
    own = [n for n, p in enumerate(inside) if p.diagonal]
    rest = [n for n, p in enumerate(inside) if not p.diagonal]
    b, T = (math.prod(inside[n].size for n in part) for part in (own, rest))
    return _Axis(b, T, tuple(p.size for p in inside), (*own, *rest))


def axis_of(c: Cotangent, dim: int) -> _Axis:
    """How dimension `dim` of a cotangent is made of batch and positions."""
    return _axis(c.layout, c.shape, dim)


def unfolded(t: Tensor, at: int, axis: _Axis) -> Tensor:
    """Dimension `at` of t as two: b (batch) and T (positions)."""
    before, after = t.shape[:at], t.shape[at + 1 :]
    if axis.order == tuple(range(len(axis.order))):
        return t.reshape(*before, axis.b, axis.T, *after)
    n = len(axis.sizes)
    split = t.reshape(*before, *axis.sizes, *after)
    perm = [*range(at), *(at + a for a in axis.order), *range(at + n, split.ndim)]
    return split.permute(perm).reshape(*before, axis.b, axis.T, *after)


def _outer(node: NodeView, side: Side, c: Cotangent, summed: int) -> Send | SendFactor:
    """At a parameter: rows stay products of the other operand and the cotangent, T = positions without a batch axis."""
    g, p, q = c.shape
    o = p if side.left else q
    axis = axis_of(c, summed)
    i = math.prod(node.input(side.edge).shape) // (g * o)

    def load_c() -> Tensor:
        values = c.values.mT if side.left else c.values  # [K, g, L, o]
        return _scaled(unfolded(values, 2, axis), side.scale)

    def load_x() -> Tensor:
        other = side.other()
        return unfolded(other.mT if side.left else other, 1, axis)  # [g, b, T, i]

    x = Operand((g, axis.b, axis.T, i), c.dtype, load_x)
    cs = Operand((c.layout.stacked, g, axis.b, axis.T, o), c.dtype, load_c)
    matrix = (o, i) if side.left else (i, o)
    shape = (g, *matrix) if g > 1 else matrix
    owners = c.layout.owners.reshape(-1)
    build = partial(make_outer, owners, shape, node.name, not side.left)
    sent = node.send_factor(side.edge, owners, build, x, cs)
    return sent._replace(donated=True, sums=True) if isinstance(sent, Send) else sent


def _outer_of_groups(node: NodeView, side: Side, c: Cotangent, summed: int) -> Send | SendFactor:
    """The same where a matrix per group has slices of any loss, such as experts with a number of places each."""
    g, L, o = c.shape[0], c.shape[summed], c.shape[3 - summed]
    turned = layouts.carry(c.layout, c.shape, (g, L, o), {0: 0, summed: 1})
    groups = groups_of(turned, (g * L, o), [L] * g)
    i = math.prod(node.input(side.edge).shape) // (g * o)

    def load() -> tuple[Tensor, Tensor]:
        other = side.other()
        x = (other.mT if side.left else other).reshape(g * L, i)
        return x, _scaled((c.values.mT if side.left else c.values).reshape(-1, g * L, o), side.scale)

    return factor_of_groups(node, side.edge, groups, (o, i), not side.left, load, c.dtype)


def outer_of(node: NodeView, edge: int, c: Cotangent, o: int, i: int, other: Load) -> Send | SendFactor:
    """The factor of a parameter [o, i] from `other [1, L, i]` and a cotangent [K, 1, L, o]."""
    axis, owners = axis_of(c, 1), c.layout.owners.reshape(-1)
    x = Operand((1, axis.b, axis.T, i), c.dtype, lambda: unfolded(other(), 1, axis))
    cs = Operand((c.layout.stacked, 1, axis.b, axis.T, o), c.dtype, lambda: unfolded(c.values, 2, axis))
    return node.send_factor(edge, owners, partial(make_outer, owners, (o, i), node.name, False), x, cs)


def _rows(node: NodeView, side: Side, c: Cotangent, summed: int) -> Send:
    """A batch axis is summed over on the way to something that is no parameter: a product for each slice.

    Where losses own many slices, those are rows of zeros and theirs first, and one product sums over each.
    """
    pieces, moved = _moved(c, summed)
    target = node.input(side.edge).shape
    rows = len(compatible(moved)[1])
    if rows < len(moved) and rows * math.prod(c.shape) <= len(moved) * math.prod(target):
        return _product(node, side, densify(c, {summed}, node.charge), 3 - summed)._replace(sums=True)
    g, p, q = c.shape
    axis = axis_of(c, summed)
    i = math.prod(target) // (g * (p if side.left else q))
    inner = (g, p, i) if side.left else (g, i, q)
    layout = _rest_layout(pieces, moved, inner, side.left)
    node.charge(len(moved) * math.prod(target) * c.dtype.itemsize)

    def compute() -> Tensor:
        other = side.other()
        x = unfolded(other.mT if side.left else other, 1, axis)  # [g, b, T, i]
        C = unfolded(c.values.mT if side.left else c.values, 2, axis)  # [K, g, b, T, o]
        J = torch.matmul(C.mT, x) if side.left else torch.matmul(x.mT, C)  # [K, g, b, o, i] or [K, g, b, i, o]
        return _scaled(J.transpose(1, 2).reshape(len(moved), *target), side.scale)

    return Send(side.edge, layout, compute, donated=True, sums=True)


def _moved(c: Cotangent, dim: int) -> tuple[list[Piece], Owners]:
    """The pieces, and the owners [R, *] of rows that slices along a dimension would be."""
    cut = layouts.split(c.layout, c.shape)
    assert cut is not None, "made whole by the caller"
    pieces, owners = cut
    axes = [a for a, x in enumerate(x for x in pieces if x.diagonal) if x.dim == dim]
    stay = [a for a in range(owners.ndim - 1) if a not in axes]
    moved = owners.transpose([0, *(1 + a for a in axes), *(1 + a for a in stay)])
    return pieces, moved.reshape(-1, *moved.shape[1 + len(axes) :])


def _rest_layout(pieces: list[Piece], owners: Owners, inner: tuple[int, int, int], left: bool) -> Layout:
    kept = 1 if left else 2
    out: list[Piece] = []
    for dim in range(3):
        mine = [p for p in pieces if p.dim == dim] if dim in (0, kept) else [Piece(inner[dim], False)]
        out += mine
    return canonical(out, owners)


def _scaled(values: Tensor, scale: complex) -> Tensor:
    return values if scale == 1 else values * scale


def _number(node: NodeView, name: str) -> complex:
    """A saved scale; conjugated, as gradients of complex numbers have it."""
    found = node.saved(name)
    return found.conjugate() if isinstance(found, complex) else float(found)


def _operand(node: NodeView, name: str) -> Tensor:
    """A saved matrix or a stack of them as [g, *, *]; conjugated if complex, dense if sparse."""
    found: Tensor = node.saved(name)
    strided = found if found.layout == torch.strided else found.to_dense()
    whole = strided if strided.ndim == 3 else strided.unsqueeze(0)
    return whole.conj() if whole.is_complex() else whole


def mm(node: NodeView) -> Sends:
    """out [p, q] = self @ mat2."""
    sides = [Side(0, True, lambda: _operand(node, "mat2")), Side(1, False, lambda: _operand(node, "self"))]
    return product(node, (1, *node.output().shape), sides)


def bmm(node: NodeView) -> Sends:
    """out [g, p, q] = self @ mat2."""
    sides = [Side(0, True, lambda: _operand(node, "mat2")), Side(1, False, lambda: _operand(node, "self"))]
    return product(node, node.output().shape, sides)


def addmm(node: NodeView) -> Sends:
    """out = beta * self + alpha * mat1 @ mat2; self broadcasts."""
    return _affine(node, "mat1", "mat2")


def baddbmm(node: NodeView) -> Sends:
    """out = beta * self + alpha * batch1 @ batch2; self broadcasts."""
    return _affine(node, "batch1", "batch2")


def _affine(node: NodeView, first: str, second: str) -> Sends:
    alpha = _number(node, "alpha")
    yield from _added(node)
    sides = [
        Side(1, True, lambda: _operand(node, second), alpha),
        Side(2, False, lambda: _operand(node, first), alpha),
    ]
    yield from product(node, (1, *node.output().shape)[-3:], sides)


@each
def _added(node: NodeView, c: Cotangent) -> Sends:
    """The summand `beta * self`, which broadcasts."""
    beta = _number(node, "beta")
    yield node.send(0, c.layout, lambda: _scaled(c.values, beta), node.output().shape)


def mv(node: NodeView) -> Sends:
    """out [p] = self [p, r] @ vec [r]."""
    sides = [
        Side(0, True, lambda: _operand(node, "vec")[:, :, None]),
        Side(1, False, lambda: _operand(node, "self")),
    ]
    return product(node, (1, node.output().shape[0], 1), sides)


def addmv(node: NodeView) -> Sends:
    """out [p] = beta * self + alpha * mat @ vec."""
    alpha = _number(node, "alpha")
    yield from _added(node)
    sides = [
        Side(1, True, lambda: _operand(node, "vec")[:, :, None], alpha),
        Side(2, False, lambda: _operand(node, "mat"), alpha),
    ]
    yield from product(node, (1, node.output().shape[0], 1), sides)


def dot(node: NodeView) -> Sends:
    """out = self . tensor."""
    names = ("tensor", "self") if "Vdot" not in node.name else ("other", "self")
    sides = [
        Side(0, True, lambda: node.saved(names[0])[None, :, None]),
        Side(1, False, lambda: node.saved(names[1])[None, None, :]),
    ]
    return product(node, (1, 1, 1), sides)


def trilinear(node: NodeView) -> Sends:
    """nn.Bilinear: out [n, o] = x1 [n, a] weight [o, a, b] x2 [n, b]; other patterns of `_trilinear` go dense."""
    pattern = [node.integers(name) for name in ("expand1", "expand2", "expand3", "sumdim")]
    return _bilinear(node) if pattern == [[1, 3], [0], [1, 2], [2, 3]] else dense_fallback(node)


@each
def _bilinear(node: NodeView, c: Cotangent) -> Sends:
    c = node.keep_only(c, {0}, MIXES)
    for edge, equation, other in ((0, "kno,oab,nb->kna", "i3"), (2, "kno,oab,na->knb", "i1")):
        if node.wants(edge):
            yield _bilinear_input(node, c, edge, equation, other)
    if node.wants(1):
        o, a, b = node.input(1).shape
        n = c.shape[0]

        def pairs() -> Tensor:
            both: Tensor = node.saved("i1")[:, :, None] * node.saved("i3")[:, None, :]
            return both.view(1, n, a * b)

        yield outer_of(node, 1, c.viewed(1, n, o), o, a * b, pairs)


def _bilinear_input(node: NodeView, c: Cotangent, edge: int, equation: str, other: str) -> Send:
    layout = layouts.carry(c.layout, c.shape, node.input(edge).shape, {0: 0})
    return Send(edge, layout, lambda: torch.einsum(equation, c.values, node.saved("i2"), node.saved(other)))


RULES: dict[str, Rule] = {
    **named("Bmm", bmm),
    **named("Addmm", addmm),
    **named("Baddbmm", baddbmm),
    **named("Mv", mv),
    **named("Addmv", addmv),
    **named("Dot Vdot", of_real(dot)),
    **named("Trilinear", trilinear),
}
