"""Normalisations: statistics mix some dimensions; scale and shift receive products with the normalised input."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.autograd import over_rows
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.node import NodeView, Rule, Sends
from gramjd.engine.rules.vocabulary import MIXES, each, named


def per_channel(node: NodeView, edge: int, c: Cotangent, values: Callable[[], Tensor]) -> Sends:
    """[K, N, C, *spatial] for a parameter of one number per channel: summed over all but C."""
    if not node.wants(edge):
        return
    n, channels, *spatial = c.shape
    last = (n, *spatial, channels)
    order = {0: 0, 1: len(last) - 1, **{d: d - 1 for d in range(2, len(last))}}
    layout = layouts.carry(c.layout, c.shape, last, order)
    yield node.send(edge, layout, lambda: values().movedim(2, -1), last)


@each
def layer_norm(node: NodeView, c: Cotangent) -> Sends:
    """Leading dimensions stay apart; the normalised ones mix."""
    shape, normalized = node.output().shape, node.integers("normalized_shape")
    c = node.keep_only(c, set(range(len(shape) - len(normalized))), MIXES)
    yield node.send(2, c.layout, lambda: c.values, shape)
    yield node.send(1, c.layout, lambda: c.values * _layer_normalised(node), shape)
    yield node.send(0, c.layout, lambda: over_rows(partial(_layer_input, node, normalized), c.values))


def _layer_normalised(node: NodeView) -> Tensor:
    normalised: Tensor = (node.saved("input") - node.saved("result1")) * node.saved("result2")
    return normalised


def _layer_input(node: NodeView, normalized: list[int], g: Tensor) -> Tensor:
    saved = [node.saved(name) for name in ("result1", "result2", "weight", "bias")]
    args = (node.saved("input"), normalized, *saved)
    out: Tensor = torch.ops.aten.native_layer_norm_backward(g.contiguous(), *args, [True, False, False])[0]
    return out


@each
def rms_norm(node: NodeView, c: Cotangent) -> Sends:
    """x / rms(x) * weight over the trailing dimensions."""
    shape = node.output().shape
    dims = tuple(range(-len(node.integers("normalized_shape")), 0))
    c = node.keep_only(c, set(range(len(shape) + dims[0])), MIXES)
    yield node.send(1, c.layout, lambda: c.values * (node.saved("input") * node.saved("result1")), shape)
    yield node.send(0, c.layout, lambda: _rms_input(node, c.values, dims))


def _rms_input(node: NodeView, values: Tensor, dims: tuple[int, ...]) -> Tensor:
    weight, rstd = node.saved("weight"), node.saved("result1")
    normalised = node.saved("input") * rstd
    g = values if weight is None else values * weight
    gradient: Tensor = rstd * (g - normalised * (g * normalised).mean(dims, keepdim=True))
    return gradient


@each
def group_norm(node: NodeView, c: Cotangent) -> Sends:
    """Samples stay apart; channels of a group and pixels mix."""
    c = node.keep_only(c, {0}, MIXES)
    yield from per_channel(node, 2, c, lambda: c.values)
    yield from per_channel(node, 1, c, lambda: c.values * _group_normalised(node))
    yield node.send(0, c.layout, lambda: over_rows(partial(_group_input, node), c.values))


def _group_normalised(node: NodeView) -> Tensor:
    x: Tensor = node.saved("input")
    n, groups = x.shape[0], node.integer("group")
    mean, rstd = (node.saved(name).view(n, groups, 1) for name in ("result1", "result2"))
    return ((x.reshape(n, groups, -1) - mean) * rstd).view(x.shape)


def _group_input(node: NodeView, g: Tensor) -> Tensor:
    saved = [node.saved(name) for name in ("input", "result1", "result2", "weight")]
    sizes = [node.integer(name) for name in ("N", "C", "HxW", "group")]
    saved[0] = saved[0].contiguous()
    out: Tensor = torch.ops.aten.native_group_norm_backward(g.contiguous(), *saved, *sizes, [True, False, False])[0]
    return out


@each
def batch_norm(node: NodeView, c: Cotangent) -> Sends:
    """In evaluation an affine map of each element; in training each channel's statistics mix the batch."""
    training = bool(node.saved("training"))
    keep = {1} if training else set(range(len(node.output().shape)))
    c = node.keep_only(c, keep, "normalises over the batch")
    yield from per_channel(node, 2, c, lambda: c.values)
    yield from per_channel(node, 1, c, lambda: c.values * _batch_normalised(node))
    yield node.send(0, c.layout, lambda: _batch_input(node, c.values, training))


def _per_channel_view(node: NodeView, t: Tensor) -> Tensor:
    return t.view(-1, *[1] * (len(node.output().shape) - 2))


def _batch_statistics(node: NodeView) -> tuple[Tensor, Tensor]:
    if node.saved("training"):
        mean, invstd = node.saved("result1"), node.saved("result2")
    else:
        eps = node.saved("eps") if node.has_saved("eps") else node.saved("epsilon")
        mean, invstd = node.saved("running_mean"), torch.rsqrt(node.saved("running_var") + eps)
    return _per_channel_view(node, mean), _per_channel_view(node, invstd)


def _batch_normalised(node: NodeView) -> Tensor:
    mean, invstd = _batch_statistics(node)
    normalised: Tensor = (node.saved("input") - mean) * invstd
    return normalised


def _batch_input(node: NodeView, values: Tensor, training: bool) -> Tensor:
    _, invstd = _batch_statistics(node)
    weight = node.saved("weight")
    scale = invstd if weight is None else invstd * _per_channel_view(node, weight)
    if not training:
        return values * scale
    normalised = _batch_normalised(node)
    dims = (1, *range(3, values.ndim))
    centred = values - values.mean(dims, keepdim=True)
    return scale * (centred - normalised * (values * normalised).mean(dims, keepdim=True))


@each
def weight_norm(node: NodeView, c: Cotangent) -> Sends:
    """w = g v / ||v||, the norm over all dimensions but one; both inputs are parameters, rows come dense."""
    c = node.densified(c, None, MIXES)
    dim = node.integer("dim")
    both = node.once(lambda: _weight_norm(node, c.values, dim))
    for edge, read in enumerate((lambda: both()[0], lambda: both()[1])):
        if node.wants(edge):
            yield node.send(edge, layouts.dense(c.layout.owners, math.prod(node.input(edge).shape)), read)


def _weight_norm(node: NodeView, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    v, g = node.saved("v"), node.saved("g")
    dims = [d for d in range(v.ndim) if d != dim % v.ndim]
    norm = torch.linalg.vector_norm(v, dim=dims, keepdim=True)
    unit = v / norm
    along = (values * unit).sum([d + 1 for d in dims], keepdim=True)
    return (values - unit * along) * (g.view(norm.shape) / norm), along.view(len(values), *g.shape)


RULES: dict[str, Rule] = {
    **named("NativeLayerNorm", layer_norm),
    **named("FusedRmsNorm", rms_norm),
    **named("NativeGroupNorm", group_norm),
    **named("CudnnBatchNorm MiopenBatchNorm NativeBatchNorm", batch_norm),
    **named("WeightNormInterface", weight_norm),
}
