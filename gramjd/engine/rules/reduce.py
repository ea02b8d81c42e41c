"""Reductions, softmax, pooling, norms of vectors: some dimensions are mixed, the others stay apart."""

from __future__ import annotations

from collections.abc import Sequence

from gramjd.engine.rules.vocabulary import DimMap, Rule, all_but, carried, leading, reduction
from gramjd.engine.visit import Visit


def _dims(visit: Visit) -> list[int]:
    """Saved reduction dimensions of the input: one, several, or none for all."""
    saved = visit.saved("dim")
    count = len(visit.input(0).shape)
    if saved is None:
        return list(range(count))
    many = saved if isinstance(saved, Sequence) else [saved]
    return [d % max(1, count) for d in (n - (1 << 64) if n >= (1 << 63) else n for n in many)] or list(range(count))


def _keepdim(visit: Visit) -> bool:
    return bool(visit.saved("keepdim"))


def _reduced(visit: Visit) -> list[DimMap | None]:
    """Kept dimensions of a reduction, output to input."""
    count = len(visit.input(0).shape)
    gone = set(_dims(visit))
    kept = [d for d in range(count) if d not in gone]
    maps: list[DimMap | None] = [{d: d for d in kept} if _keepdim(visit) else dict(enumerate(kept))]
    return maps * len(visit.edges)


def _count(visit: Visit) -> float:
    shape = visit.input(0).shape
    total = 1
    for d in _dims(visit):
        total *= shape[d]
    return 1.0 / max(1, total)


def _everything(visit: Visit) -> list[int]:
    return list(range(len(visit.input(0).shape)))


def _numel(visit: Visit) -> float:
    total = 1
    for n in visit.input(0).shape:
        total *= n
    return 1.0 / max(1, total)


def _spatial(count: int) -> Rule:
    """Pooling and resampling over the last `count` dimensions."""
    return all_but(lambda visit: range(len(visit.output().shape) - count, len(visit.output().shape)))


def _loss_dims(visit: Visit) -> list[DimMap | None]:
    """nll_loss [B, C] or [C] to [B] or []: the class dimension is new; a reduced loss keeps nothing apart."""
    if visit.integer("reduction") != 0:
        return [{}]
    return [{d: (d if d == 0 else d + 1) for d in range(len(visit.output().shape))}]


def _glu(visit: Visit) -> list[int]:
    return [visit.dim()]


_REDUCED = """
Amax Amin Aminmax Logsumexp Std Var Prod LinalgVectorNorm Norm Max Min Median Nanmedian Mode Kthvalue Nansum
""".split()
_ALONG = "Softmax LogSoftmax SafeSoftmax Cumsum Cumprod Logcumsumexp Cummax Cummin Glu Sort".split()
_ALL = "Renorm".split()
_PLANES = {
    1: "AdaptiveAvgPool1D AvgPool1D ReflectionPad1D ReplicationPad1D UpsampleNearest1D UpsampleNearestExact1D UpsampleLinear1D",
    2: "AdaptiveAvgPool2D AdaptiveMaxPool2D AvgPool2D MaxPool2DWithIndices MaxPool2D MkldnnMaxPool2D FractionalMaxPool2D "
    "ReflectionPad2D ReplicationPad2D UpsampleNearest2D UpsampleNearestExact2D UpsampleBilinear2D UpsampleBicubic2D "
    "UpsampleBilinear2DAa UpsampleBicubic2DAa MaxUnpool2D MkldnnAdaptiveAvgPool2D",
    3: "AdaptiveAvgPool3D AdaptiveMaxPool3D AvgPool3D MaxPool3DWithIndices MaxPool3D FractionalMaxPool3D "
    "ReflectionPad3D ReplicationPad3D UpsampleNearest3D UpsampleNearestExact3D UpsampleTrilinear3D",
}

RULES: dict[str, Rule] = {
    "SumBackward0": reduction(_everything, lambda _: False),
    "SumBackward1": reduction(_dims, _keepdim),
    "MeanBackward0": reduction(_everything, lambda _: False, _numel),
    "MeanBackward1": reduction(_dims, _keepdim, _count),
    **{f"{name}Backward{n}": carried(_reduced) for name in _REDUCED for n in range(1, 5)},
    **{
        f"{name}Backward0": carried(_reduced)
        for name in "Amax Amin Aminmax Logsumexp Std Var Prod LinalgVectorNorm Norm Max Min Mode Kthvalue".split()
    },
    **{f"{name}Backward{n}": all_but(lambda visit: [visit.dim()]) for name in _ALONG for n in range(3)},
    **{f"{name}Backward{n}": _spatial(count) for count, names in _PLANES.items() for name in names.split() for n in range(2)},
    **{name: carried(_loss_dims) for name in ("NllLossBackward0", "NllLoss2DBackward0")},
    **{
        f"{name}Backward0": leading(lambda visit: len(visit.output().shape))
        for name in "MultiMarginLoss MultilabelMarginLoss".split()
    },
    **{name: leading(lambda visit: 2) for name in ("PixelShuffleBackward0", "PixelUnshuffleBackward0")},
    "CtcLossBackward0": carried(lambda visit: [{0: 1}]),
    "CdistBackward0": leading(lambda visit: len(visit.output().shape) - 2),
    "GridSampler2DBackward0": leading(lambda visit: 1),
    "GridSampler3DBackward0": leading(lambda visit: 1),
    "Im2ColBackward0": leading(lambda visit: 1),
    "Col2ImBackward0": leading(lambda visit: 1),
    **{
        f"{name}Backward0": leading(lambda visit: len(visit.output().shape) - 2)
        for name in "LinalgInvEx LinalgSolveEx LinalgSolveTriangular LinalgCholeskyEx LinalgMatrixExp LinalgQr".split()
    },
    "LinalgDetBackward0": leading(lambda visit: len(visit.output().shape)),
}
