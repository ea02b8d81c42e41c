"""Convolutions of any dimension, grouped, strided, dilated, transposed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.factor import Convolution
from gramjd.engine.node import NodeView
from gramjd.engine.rules.vocabulary import MIXES, Rule, in_parts, named, of_real, written_over
from gramjd.kernels.cost import slab


def per_channel(visit: NodeView, edge: int, group: Cotangent, values: Callable[[], Tensor]) -> None:
    """Send [K, N, C, *spatial] to a parameter of one number a channel: summed over all but C."""
    if not visit.wants(edge):
        return
    n, c, *spatial = group.shape
    last = (n, *spatial, c)
    order = {0: 0, 1: len(last) - 1, **{d: d - 1 for d in range(2, len(last))}}
    layout = layouts.carry(group.layout, group.shape, last, order)
    visit.send(edge, layout, lambda: values().movedim(2, -1), last)


def _options(visit: NodeView) -> dict[str, Any]:
    names = ("stride", "padding", "dilation")
    return {name: _each_dim(visit, name) for name in names} | {"groups": visit.integer("groups")}


def _each_dim(visit: NodeView, name: str) -> list[int]:
    """One number a spatial dimension: padding="valid" saves one for all of them."""
    given, dims = visit.integers(name), len(visit.output().shape) - 2
    return given if len(given) == dims else given * dims


def convolution(visit: NodeView) -> None:
    """out [N, O, *] = conv(input [N, I, *], weight) + bias: samples stay apart, channels and pixels mix."""
    for group in visit.groups():
        _operands(visit, visit.keep_only(group, {0}, MIXES))


def _operands(visit: NodeView, group: Cotangent) -> None:
    per_channel(visit, 2, group, lambda: group.values)
    if visit.wants(1):
        _weight(visit, group)
    if visit.wants(0):
        target = visit.input(0).shape
        layout = layouts.carry(group.layout, group.shape, target, {0: 0})
        K = group.layout.stacked

        def compute(rows: Tensor, which: slice) -> Tensor:
            return _input_gradient(visit, rows, which if K == 1 else None)

        def anew() -> Tensor:
            rows = group.values.flatten(0, 1)
            shape = (len(rows), *target[1:])
            # The library makes a copy of the result in its own order: no larger than a slab.
            large = math.prod(shape) > slab()
            found = in_parts(rows, rows.new_empty(shape), compute) if large else compute(rows, slice(None))
            return found.view(K, *target)

        found = written_over(visit, group, 0, (2, 1), compute)
        visit.send(0, layout, anew if found is None else found.view(K, *target), owned=True)


def _input_gradient(visit: NodeView, rows: Tensor, which: slice | None) -> Tensor:
    """What rows [R, o, *] of cotangents become, [R, i, *]; `which` samples they are of, if not stacked."""
    # Only its shape matters, but an expanded one would be copied.
    found = visit.saved("input")
    same = which is not None and found is not None and found.dtype == rows.dtype
    out: Tensor = torch.ops.aten.convolution_backward(
        rows,
        found[which] if same else rows.new_empty(len(rows), *visit.input(0).shape[1:]),
        visit.saved("weight"),
        None,
        visit.integers("stride"),
        visit.integers("padding"),
        visit.integers("dilation"),
        bool(visit.saved("transposed")),
        visit.integers("output_padding"),
        visit.integer("groups"),
        [True, False, False],
    )[0]
    return out


def _weight(visit: NodeView, group: Cotangent) -> None:
    shape = visit.input(1).shape
    cut = layouts.split(group.layout, group.shape)
    assert cut is not None, "kept to whole dimensions above"
    pieces, rows = cut
    inside = [p for p in pieces if p.dim == 0]
    b = math.prod(p.size for p in inside if p.diagonal)
    transposed = bool(visit.saved("transposed"))
    options = _options(visit)
    kernel = tuple(shape)
    x, c = _tensors(visit, group)
    if b != group.shape[0]:
        # Samples of one row are one more dimension to sum over, with a kernel of size 1.
        order = [n for n, p in enumerate(inside) if p.diagonal] + [n for n, p in enumerate(inside) if not p.diagonal]
        x = _apart(x[None], [p.size for p in inside], order, b)[0]
        c = _apart(c, [p.size for p in inside], order, b)
        kernel = (*shape[:2], 1, *shape[2:])
        one = {"stride": 1, "padding": 0, "dilation": 1}
        options |= {name: [value, *options[name]] for name, value in one.items()}
    factor = Convolution(rows.reshape(-1), kernel, visit.name, x, c, options, transposed)
    if visit.parametric(1):
        visit.send_factor(1, factor)
    else:
        visit.send_rows(1, factor)


def _tensors(visit: NodeView, group: Cotangent) -> tuple[Tensor, Tensor]:
    if not visit.dry:
        return visit.saved("input"), group.values
    weight = visit.input(1).shape
    if visit.wants(0):
        shape: tuple[int, ...] = visit.input(0).shape
    else:
        channels = weight[0] if bool(visit.saved("transposed")) else weight[1] * visit.integer("groups")
        shape = (group.shape[0], channels, *group.shape[2:])
    return torch.empty(shape, device="meta", dtype=group.values.dtype), group.values


def _apart(t: Tensor, sizes: list[int], order: list[int], b: int) -> Tensor:
    """[K, n, channels, *spatial] to [K, b, channels, n / b, *spatial]."""
    k, channels, *spatial = t.shape[0], *t.shape[2:]
    split = t.reshape(k, *(sizes or [1]), channels, *spatial)
    count = len(sizes or [1])
    front = [1 + a for a in (order or [0])]
    whole = split.permute(0, *front, *range(1 + count, split.ndim)).reshape(k, b, -1, channels, *spatial)
    return whole.transpose(2, 3)


RULES: dict[str, Rule] = named("Convolution ConvolutionOverrideable", of_real(convolution))
