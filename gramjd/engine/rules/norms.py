"""Normalisations: statistics mix some dimensions; scale and shift receive products with the normalised input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.autograd import over_rows
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.node import NodeView
from gramjd.engine.rules.convolution import per_channel
from gramjd.engine.rules.vocabulary import MIXES, Rule, each, named


@each
def layer_norm(visit: NodeView, group: Cotangent) -> None:
    """Leading dimensions stay apart; the normalised ones mix."""
    shape = visit.output().shape
    normalized = visit.integers("normalized_shape")
    group = visit.keep_only(group, set(range(len(shape) - len(normalized))), MIXES)
    visit.send(2, group.layout, group.values, shape)
    if visit.wants(1):
        visit.send(1, group.layout, lambda: group.values * _layer_normalised(visit), shape)
    visit.send(0, group.layout, lambda: over_rows(lambda g: _layer_input(visit, g, normalized), group.values))


def _layer_normalised(visit: NodeView) -> Tensor:
    normalised: Tensor = (visit.saved("input") - visit.saved("result1")) * visit.saved("result2")
    return normalised


def _layer_input(visit: NodeView, g: Tensor, normalized: list[int]) -> Tensor:
    saved = [visit.saved(name) for name in ("result1", "result2", "weight", "bias")]
    args = (visit.saved("input"), normalized, *saved)
    out: Tensor = torch.ops.aten.native_layer_norm_backward(g.contiguous(), *args, [True, False, False])[0]
    return out


@each
def rms_norm(visit: NodeView, group: Cotangent) -> None:
    """x / rms(x) * weight over the trailing dimensions."""
    shape = visit.output().shape
    dims = tuple(range(-len(visit.integers("normalized_shape")), 0))
    group = visit.keep_only(group, set(range(len(shape) + dims[0])), MIXES)
    if visit.wants(1):
        visit.send(1, group.layout, lambda: group.values * (visit.saved("input") * visit.saved("result1")), shape)
    visit.send(0, group.layout, lambda: _rms_input(visit, group.values, dims))


def _rms_input(visit: NodeView, values: Tensor, dims: tuple[int, ...]) -> Tensor:
    weight, rstd = visit.saved("weight"), visit.saved("result1")
    normalised = visit.saved("input") * rstd
    g = values if weight is None else values * weight
    gradient: Tensor = rstd * (g - normalised * (g * normalised).mean(dims, keepdim=True))
    return gradient


@each
def group_norm(visit: NodeView, group: Cotangent) -> None:
    """Samples stay apart; channels of a group and pixels mix."""
    group = visit.keep_only(group, {0}, MIXES)
    per_channel(visit, 2, group, lambda: group.values)
    per_channel(visit, 1, group, lambda: group.values * _group_normalised(visit))
    visit.send(0, group.layout, lambda: over_rows(lambda g: _group_input(visit, g), group.values))


def _group_normalised(visit: NodeView) -> Tensor:
    x: Tensor = visit.saved("input")
    n, groups = x.shape[0], visit.integer("group")
    mean, rstd = (visit.saved(name).view(n, groups, 1) for name in ("result1", "result2"))
    return ((x.reshape(n, groups, -1) - mean) * rstd).view(x.shape)


def _group_input(visit: NodeView, g: Tensor) -> Tensor:
    saved = [visit.saved(name) for name in ("input", "result1", "result2", "weight")]
    sizes = [visit.integer(name) for name in ("N", "C", "HxW", "group")]
    saved[0] = saved[0].contiguous()
    out: Tensor = torch.ops.aten.native_group_norm_backward(g.contiguous(), *saved, *sizes, [True, False, False])[0]
    return out


@each
def batch_norm(visit: NodeView, group: Cotangent) -> None:
    """In evaluation an affine map of each element; in training each channel's statistics mix the batch."""
    training = bool(visit.saved("training"))
    keep = {1} if training else set(range(len(visit.output().shape)))
    group = visit.keep_only(group, keep, "normalises over the batch")
    per_channel(visit, 2, group, lambda: group.values)
    per_channel(visit, 1, group, lambda: group.values * _batch_normalised(visit))
    visit.send(0, group.layout, lambda: _batch_input(visit, group.values, training))


def _per_channel_view(visit: NodeView, t: Tensor) -> Tensor:
    return t.view(-1, *[1] * (len(visit.output().shape) - 2))


def _batch_statistics(visit: NodeView) -> tuple[Tensor, Tensor]:
    if visit.saved("training"):
        mean, invstd = visit.saved("result1"), visit.saved("result2")
    else:
        eps = visit.saved("eps") if visit.has_saved("eps") else visit.saved("epsilon")
        mean, invstd = visit.saved("running_mean"), torch.rsqrt(visit.saved("running_var") + eps)
    return _per_channel_view(visit, mean), _per_channel_view(visit, invstd)


def _batch_normalised(visit: NodeView) -> Tensor:
    mean, invstd = _batch_statistics(visit)
    normalised: Tensor = (visit.saved("input") - mean) * invstd
    return normalised


def _batch_input(visit: NodeView, values: Tensor, training: bool) -> Tensor:
    _, invstd = _batch_statistics(visit)
    weight = visit.saved("weight")
    scale = invstd if weight is None else invstd * _per_channel_view(visit, weight)
    if not training:
        return values * scale
    normalised = _batch_normalised(visit)
    dims = (1, *range(3, values.ndim))
    centred = values - values.mean(dims, keepdim=True)
    return scale * (centred - normalised * (values * normalised).mean(dims, keepdim=True))


@each
def weight_norm(visit: NodeView, group: Cotangent) -> None:
    """w = g v / ||v||, the norm over all dimensions but one; both inputs are parameters, rows come dense."""
    group = visit.densified(group, None, MIXES)
    v, g = (None, None) if visit.dry else _weight_norm(visit, group.values, visit.integer("dim"))
    for edge, value in enumerate((v, g)):
        if visit.wants(edge):
            visit.send(edge, layouts.dense(group.layout.rows, math.prod(visit.input(edge).shape)), value)


def _weight_norm(visit: NodeView, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    v, g = visit.saved("v"), visit.saved("g")
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
