"""Reductions, softmax, attention, pooling, norms: some dimensions are mixed, the others stay apart."""

from __future__ import annotations

from collections.abc import Sequence

from gramjd.engine.node import NodeView, Rule, Sends, signed
from gramjd.engine.rules.vocabulary import DimMap, apart, batch_leading, dense_fallback, mixing, named, reduction


def _dims(node: NodeView) -> list[int]:
    """Saved reduction dimensions of the input: one, several, or none for all."""
    saved = node.saved("dim") if node.has_saved("dim") else None
    count = len(node.input(0).shape)
    if saved is None:
        return list(range(count))
    many = saved if isinstance(saved, Sequence) else [saved]
    return [d % max(1, count) for d in map(signed, many)] or list(range(count))


def _keepdim(node: NodeView) -> bool:
    return node.has_saved("keepdim") and bool(node.saved("keepdim"))


def _reduced(node: NodeView) -> list[DimMap | None]:
    """Kept dimensions of a reduction, output to input."""
    count = len(node.input(0).shape)
    gone = set(_dims(node))
    kept = [d for d in range(count) if d not in gone]
    maps: list[DimMap | None] = [{d: d for d in kept} if _keepdim(node) else dict(enumerate(kept))]
    return maps * len(node.inputs)


def _reduction(node: NodeView) -> Sends:
    """Kept dimensions stay apart. The nodes give a number without dimensions back with one."""
    return (apart(_reduced) if node.input(0).shape else dense_fallback)(node)


def _count(node: NodeView) -> float:
    shape = node.input(0).shape or (1,)
    total = 1
    for d in _dims(node):
        total *= shape[d]
    return 1.0 / max(1, total)


def _everything(node: NodeView) -> list[int]:
    return list(range(len(node.input(0).shape)))


def _numel(node: NodeView) -> float:
    total = 1
    for n in node.input(0).shape:
        total *= n
    return 1.0 / max(1, total)


def _loss_dims(node: NodeView) -> list[DimMap | None]:
    """nll_loss [B, C] or [C] to [B] or []: the class dimension is new; a reduced loss keeps nothing apart."""
    if node.integer("reduction") != 0:
        return [{}]
    return [{d: (d if d == 0 else d + 1) for d in range(len(node.output().shape))}]


def _cross(node: NodeView) -> Sends:
    """Cross product along one dimension, of operands that may broadcast."""
    shape = node.output().shape
    same = all(node.input(e).shape == shape for e in node.wanted)
    return mixing(lambda v: [v.dim()])(node) if same else dense_fallback(node)


def renorm(node: NodeView) -> Sends:
    """Slices along one dimension scaled down to a norm: each has its own."""
    return apart(lambda v: [{v.dim(): v.dim()}])(node)


def quantised(node: NodeView) -> Sends:
    """Fake quantisation whose scale and zero point are learned, and shared by all samples."""
    return apart(lambda v: [{d: d for d in range(len(v.output().shape))}, {}, {}])(node)


def _fft(node: NodeView) -> list[int]:
    return [d % len(node.output().shape) for d in node.integers("dim")]


def _same_lead(node: NodeView) -> Sends:
    """All dimensions but the pair of real and imaginary part."""
    return batch_leading(lambda v: min(len(v.output().shape), len(v.input(0).shape)))(node)


def _last_dims(count: int) -> Rule:
    """Pooling and resampling over the last `count` dimensions."""
    return mixing(lambda node: range(len(node.output().shape) - count, len(node.output().shape)), fresh=True)


_REDUCED = """
    Amax Amin Aminmax Kthvalue LinalgVectorNorm Logsumexp Max Median Min Mode Nanmedian Nansum Norm Prod Std StdMean Var
    VarMean
"""
_ALONG = "Cummax Cummin Cumprod Cumsum Glu LogSoftmax Logcumsumexp SafeSoftmax Softmax Sort Topk"
_PLANES = {
    1: "ReflectionPad1D ReplicationPad1D UpsampleLinear1D UpsampleNearest1D UpsampleNearestExact1D",
    2: "AdaptiveAvgPool2D AdaptiveMaxPool2D AvgPool2D FractionalMaxPool2D MaxPool2D MaxPool2DWithIndices MaxUnpool2D "
    "ReflectionPad2D ReplicationPad2D UpsampleBicubic2D UpsampleBicubic2DAa UpsampleBilinear2D UpsampleBilinear2DAa "
    "UpsampleNearest2D UpsampleNearestExact2D",
    3: "AdaptiveAvgPool3D AdaptiveMaxPool3D AvgPool3D FractionalMaxPool3D MaxPool3DWithIndices ReflectionPad3D "
    "ReplicationPad3D UpsampleNearest3D UpsampleNearestExact3D UpsampleTrilinear3D",
}
# Fused attention, [B, H, T, d]: B and H stay apart, positions mix. Unfused attention is products and softmax.
_ATTENTION = """
    ScaledDotProductCudnnAttention ScaledDotProductEfficientAttention ScaledDotProductFlashAttention
    ScaledDotProductFlashAttentionForCpu ScaledDotProductFusedAttentionOverrideable
"""

RULES: dict[str, Rule] = {
    **named(_REDUCED, _reduction),
    "SumBackward0": reduction(_everything, lambda _: False),
    "SumBackward1": reduction(_dims, _keepdim),
    "MeanBackward0": reduction(_everything, lambda _: False, _numel),
    "MeanBackward1": reduction(_dims, _keepdim, _count),
    **named(_ALONG, mixing(lambda node: [node.dim()])),
    **{key: rule for count, text in _PLANES.items() for key, rule in named(text, _last_dims(count)).items()},
    **named("NllLoss NllLoss2D", apart(_loss_dims)),
    **named("MultiMarginLoss MultilabelMarginLoss", batch_leading(lambda node: len(node.output().shape))),
    **named(f"PixelShuffle PixelUnshuffle {_ATTENTION}", batch_leading(lambda node: 2)),
    **named("AffineGridGenerator Col2Im GridSampler2D GridSampler3D Im2Col", batch_leading(lambda node: 1)),
    **named("CtcLoss", apart(lambda node: [{0: 1}])),
    **named("FftC2C FftC2R FftR2C", mixing(_fft)),
    **named("LinalgCross", _cross),
    **named("Renorm", renorm),
    **named("FakeQuantizeLearnablePerChannelAffine FakeQuantizeLearnablePerTensorAffine", quantised),
    **named("ViewAsComplex ViewAsReal", _same_lead),
}
