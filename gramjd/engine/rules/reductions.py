"""Reductions, softmax, pooling, norms of vectors: some dimensions are mixed, the others stay apart."""

from __future__ import annotations

from collections.abc import Sequence

from gramjd.engine.node import NodeView
from gramjd.engine.rules.vocabulary import DimMap, Rule, all_but, carried, leading, named, opaque, reduction


def _dims(visit: NodeView) -> list[int]:
    """Saved reduction dimensions of the input: one, several, or none for all."""
    saved = visit.saved("dim") if visit.has_saved("dim") else None
    count = len(visit.input(0).shape)
    if saved is None:
        return list(range(count))
    many = saved if isinstance(saved, Sequence) else [saved]
    return [d % max(1, count) for d in (n - (1 << 64) if n >= (1 << 63) else n for n in many)] or list(range(count))


def _keepdim(visit: NodeView) -> bool:
    return visit.has_saved("keepdim") and bool(visit.saved("keepdim"))


def _reduced(visit: NodeView) -> list[DimMap | None]:
    """Kept dimensions of a reduction, output to input."""
    count = len(visit.input(0).shape)
    gone = set(_dims(visit))
    kept = [d for d in range(count) if d not in gone]
    maps: list[DimMap | None] = [{d: d for d in kept} if _keepdim(visit) else dict(enumerate(kept))]
    return maps * len(visit.edges)


def _reduction(visit: NodeView) -> None:
    """Kept dimensions stay apart. The nodes give a number without dimensions back with one."""
    (carried(_reduced) if visit.input(0).shape else opaque)(visit)


def _count(visit: NodeView) -> float:
    shape = visit.input(0).shape or (1,)
    total = 1
    for d in _dims(visit):
        total *= shape[d]
    return 1.0 / max(1, total)


def _everything(visit: NodeView) -> list[int]:
    return list(range(len(visit.input(0).shape)))


def _numel(visit: NodeView) -> float:
    total = 1
    for n in visit.input(0).shape:
        total *= n
    return 1.0 / max(1, total)


def _loss_dims(visit: NodeView) -> list[DimMap | None]:
    """nll_loss [B, C] or [C] to [B] or []: the class dimension is new; a reduced loss keeps nothing apart."""
    if visit.integer("reduction") != 0:
        return [{}]
    return [{d: (d if d == 0 else d + 1) for d in range(len(visit.output().shape))}]


def _cdist(visit: NodeView) -> None:
    """Batch dimensions that both operands have stay apart; broadcast ones go dense."""
    lead = visit.output().shape[:-2]
    wanted = [e for e in range(2) if visit.wants(e)]
    if (
        all(visit.input(e).shape[:-2] == lead for e in wanted)
        and visit.saved("x1").shape[:-2] == visit.saved("x2").shape[:-2]
    ):
        leading(lambda v: len(lead))(visit)
    else:
        opaque(visit)


def _cross(visit: NodeView) -> None:
    """Cross product along one dimension, of operands that may broadcast."""
    shape = visit.output().shape
    if all(visit.input(e).shape == shape for e in range(2) if visit.wants(e)):
        all_but(lambda v: [v.dim()])(visit)
    else:
        opaque(visit)


def _fft(visit: NodeView) -> list[int]:
    return [d % len(visit.output().shape) for d in visit.integers("dim")]


def _same_lead(visit: NodeView) -> None:
    """All dimensions but the pair of real and imaginary part."""
    leading(lambda v: min(len(v.output().shape), len(v.input(0).shape)))(visit)


def _matrices(visit: NodeView) -> int:
    """Batch dimensions of a decomposition of [*, p, q] matrices."""
    return len(visit.input(0).shape) - 2


def _last_dims(count: int) -> Rule:
    """Pooling and resampling over the last `count` dimensions."""
    return all_but(lambda visit: range(len(visit.output().shape) - count, len(visit.output().shape)), fresh=True)


_REDUCED = """
    Amax Amin Aminmax Kthvalue LinalgVectorNorm Logsumexp Max Median Min Mode Nanmedian Nansum Norm Prod Std StdMean Var
    VarMean
"""
_ALONG = "Cummax Cummin Cumprod Cumsum Glu LogSoftmax Logcumsumexp SafeSoftmax Softmax Sort"
_PLANES = {
    1: "ReflectionPad1D ReplicationPad1D UpsampleLinear1D UpsampleNearest1D UpsampleNearestExact1D",
    2: "AdaptiveAvgPool2D AdaptiveMaxPool2D AvgPool2D FractionalMaxPool2D MaxPool2D MaxPool2DWithIndices MaxUnpool2D "
    "ReflectionPad2D ReplicationPad2D UpsampleBicubic2D UpsampleBicubic2DAa UpsampleBilinear2D UpsampleBilinear2DAa "
    "UpsampleNearest2D UpsampleNearestExact2D",
    3: "AdaptiveAvgPool3D AdaptiveMaxPool3D AvgPool3D FractionalMaxPool3D MaxPool3DWithIndices ReflectionPad3D "
    "ReplicationPad3D UpsampleNearest3D UpsampleNearestExact3D UpsampleTrilinear3D",
}
_SOLVED = "LinalgCholeskyEx LinalgInvEx LinalgMatrixExp LinalgQr LinalgSolveEx LinalgSolveTriangular"
_DECOMPOSED = "LinalgDet LinalgEig LinalgEigh LinalgLuFactorEx LinalgPinv LinalgSlogdet LinalgSvd"

RULES: dict[str, Rule] = {
    **named(_REDUCED, _reduction),
    "SumBackward0": reduction(_everything, lambda _: False),
    "SumBackward1": reduction(_dims, _keepdim),
    "MeanBackward0": reduction(_everything, lambda _: False, _numel),
    "MeanBackward1": reduction(_dims, _keepdim, _count),
    **named(_ALONG, all_but(lambda visit: [visit.dim()])),
    **{key: rule for count, text in _PLANES.items() for key, rule in named(text, _last_dims(count)).items()},
    **named("NllLoss NllLoss2D", carried(_loss_dims)),
    **named("MultiMarginLoss MultilabelMarginLoss", leading(lambda visit: len(visit.output().shape))),
    **named("PixelShuffle PixelUnshuffle", leading(lambda visit: 2)),
    **named("AffineGridGenerator Col2Im GridSampler2D GridSampler3D Im2Col", leading(lambda visit: 1)),
    **named("CtcLoss", carried(lambda visit: [{0: 1}])),
    **named("Cdist", _cdist),
    **named(_SOLVED, leading(lambda visit: len(visit.output().shape) - 2)),
    **named(_DECOMPOSED, leading(_matrices)),
    **named("FftC2C FftC2R FftR2C", all_but(_fft)),
    **named("LinalgCross", _cross),
    **named("ViewAsComplex ViewAsReal", _same_lead),
}
