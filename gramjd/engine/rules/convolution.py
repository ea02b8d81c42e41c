"""Convolutions of any dimension, grouped, strided, dilated, transposed."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.factor import Convolution
from gramjd.engine.layout import Owners
from gramjd.engine.node import NodeView, Operand, Rule, Send, SendFactor, Sends
from gramjd.engine.rules.matmul import axis_of
from gramjd.engine.rules.norms import per_channel
from gramjd.engine.rules.vocabulary import MIXES, dense_fallback, each, in_parts, named, of_real, overwrite
from gramjd.kernels.cost import chunk


def _each_dim(node: NodeView, name: str) -> list[int]:
    """One number per spatial dimension: padding="valid" saves one for all of them."""
    given, dims = node.integers(name), len(node.output().shape) - 2
    return given if len(given) == dims else given * dims


@each
def convolution(node: NodeView, c: Cotangent) -> Sends:
    """out [N, O, *] = conv(input [N, I, *], weight) + bias: samples stay apart, channels and pixels mix."""
    c = node.keep_only(c, {0}, MIXES)
    yield from per_channel(node, 2, c, lambda: c.values)
    if node.wants(1):
        yield _weight(node, c, 1, "input", bool(node.saved("transposed")))
    if node.wants(0):
        yield _input(node, c)


def _input(node: NodeView, c: Cotangent) -> Send:
    target, K = node.input(0).shape, c.layout.stacked
    layout = layouts.carry(c.layout, c.shape, target, {0: 0})

    def part(rows: Tensor, which: slice) -> Tensor:
        return _input_gradient(node, rows, which if K == 1 else None)

    def compute() -> Tensor:
        rows = c.values.flatten(0, 1)
        shape = (len(rows), *target[1:])
        # The library makes a copy of the result in its own order: no larger than a chunk.
        large = math.prod(shape) > chunk()
        found = in_parts(rows, rows.new_empty(shape), part) if large else part(rows, slice(None))
        return found.view(K, *target)

    return Send(0, layout, compute, donated=True, over=overwrite(node, c, 0, (2, 1), part))


def _input_gradient(node: NodeView, rows: Tensor, which: slice | None) -> Tensor:
    """What rows [R, o, *] of cotangents become, [R, i, *]; `which` samples they are of, if not stacked."""
    # Only its shape matters, but an expanded one would be copied.
    found = node.saved("input")
    same = which is not None and found is not None and found.dtype == rows.dtype
    out: Tensor = torch.ops.aten.convolution_backward(
        rows,
        found[which] if same else rows.new_empty(len(rows), *node.input(0).shape[1:]),
        node.saved("weight"),
        None,
        node.integers("stride"),
        node.integers("padding"),
        node.integers("dilation"),
        bool(node.saved("transposed")),
        node.integers("output_padding"),
        node.integer("groups"),
        [True, False, False],
    )[0]
    return out


def _weight(node: NodeView, c: Cotangent, edge: int, given: str, transposed: bool) -> Send | SendFactor:
    """What the weight at an edge receives, for the saved tensor `given` that it is applied to."""
    shape, n = node.input(edge).shape, c.shape[0]
    axis, owners = axis_of(c, 0), c.layout.owners.reshape(-1)
    groups = node.integer("groups")
    options: dict[str, Any] = {name: _each_dim(node, name) for name in ("stride", "padding", "dilation")}
    options["groups"] = groups
    channels = shape[0] if transposed else shape[1] * groups
    kernel = tuple(shape)
    split = axis.b != n
    if split:
        # Samples of one row are one more dimension to sum over, with a kernel of size 1.
        kernel = (*shape[:2], 1, *shape[2:])
        one = {"stride": 1, "padding": 0, "dilation": 1}
        options |= {name: [value, *options[name]] for name, value in one.items()}

    def load_x() -> Tensor:
        x: Tensor = node.saved(given)
        return _apart(x[None], axis.sizes, axis.order, axis.b)[0] if split else x

    def load_c() -> Tensor:
        return _apart(c.values, axis.sizes, axis.order, axis.b) if split else c.values

    space = node.input(0).shape[2:] if node.wants(0) else c.shape[2:]
    inner = (n // axis.b,) if split else ()
    x = Operand((axis.b, channels, *inner, *space), c.dtype, load_x)
    cs = Operand((c.layout.stacked, axis.b, c.shape[1], *inner, *c.shape[2:]), c.dtype, load_c)
    return node.send_factor(edge, owners, partial(_made, owners, kernel, node.name, options, transposed), x, cs)


def _made(
    owners: Owners, kernel: tuple[int, ...], name: str, options: dict[str, Any], transposed: bool, x: Tensor, c: Tensor
) -> Convolution:
    return Convolution(owners, kernel, name, x, c, options, transposed)


def _apart(t: Tensor, sizes: tuple[int, ...], order: tuple[int, ...], b: int) -> Tensor:
    """[K, n, channels, *spatial] to [K, b, channels, n / b, *spatial]."""
    k, channels, *spatial = t.shape[0], *t.shape[2:]
    split = t.reshape(k, *(sizes or (1,)), channels, *spatial)
    count = len(sizes or (1,))
    front = [1 + a for a in (order or (0,))]
    whole = split.permute(0, *front, *range(1 + count, split.ndim)).reshape(k, b, -1, channels, *spatial)
    return whole.transpose(2, 3)


def convolution_twice(node: NodeView) -> Sends:
    """The derivative of a convolution by its input, as a map of the cotangent that it was given.

    It is the transposed convolution with the same weight, of that cotangent; where derivatives by the weight are
    differentiated as well, rows are dense.
    """
    return _transposed(node) if set(node.arrivals) == {0} else dense_fallback(node)


@each
def _transposed(node: NodeView, c: Cotangent) -> Sends:
    c = node.keep_only(c, {0}, MIXES)
    if node.wants(2):
        yield _weight(node, c, 2, "grad_output", not node.saved("transposed"))
    if node.wants(0):
        layout = layouts.carry(c.layout, c.shape, node.input(0).shape, {0: 0})
        yield node.send(0, layout, partial(_convolved, node, c), donated=True)


def _convolved(node: NodeView, c: Cotangent) -> Tensor:
    options = [node.integers(name) for name in ("stride", "padding", "dilation")]
    last = (bool(node.saved("transposed")), node.integers("output_padding"), node.integer("groups"))
    rows = c.values.flatten(0, 1)
    found: Tensor = torch.ops.aten.convolution(rows, node.saved("weight"), None, *options, *last)
    return found.view(c.layout.stacked, *node.input(0).shape)


RULES: dict[str, Rule] = {
    **named("Convolution ConvolutionOverrideable", of_real(convolution)),
    **named("ConvolutionBackward", of_real(convolution_twice)),
}
