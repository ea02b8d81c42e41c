"""Reductions, softmax, pooling, norms of vectors: some dimensions are mixed, the others stay apart."""

from __future__ import annotations

from collections.abc import Sequence

from gramjd.engine.rules.vocabulary import DimMap, Rule, all_but, carried, leading, opaque, reduction
from gramjd.engine.visit import Visit


def _dims(visit: Visit) -> list[int]:
    """Saved reduction dimensions of the input: one, several, or none for all."""
    saved = visit.saved("dim") if hasattr(visit.node, "_saved_dim") else None
    count = len(visit.input(0).shape)
    if saved is None:
        return list(range(count))
    many = saved if isinstance(saved, Sequence) else [saved]
    return [d % max(1, count) for d in (n - (1 << 64) if n >= (1 << 63) else n for n in many)] or list(range(count))


def _keepdim(visit: Visit) -> bool:
    return hasattr(visit.node, "_saved_keepdim") and bool(visit.saved("keepdim"))


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


def _cdist(visit: Visit) -> None:
    """Batch dimensions that both operands have stay apart; broadcast ones go dense."""
    lead = visit.output().shape[:-2]
    wanted = [e for e in range(2) if visit.wants(e)]
    if all(visit.input(e).shape[:-2] == lead for e in wanted) and visit.saved("x1").shape[:-2] == visit.saved("x2").shape[:-2]:
        leading(lambda v: len(lead))(visit)
    else:
        opaque(visit)


def _cross(visit: Visit) -> None:
    """Cross product along one dimension, of operands that may broadcast."""
    shape = visit.output().shape
    if all(visit.input(e).shape == shape for e in range(2) if visit.wants(e)):
        all_but(lambda v: [v.dim()])(visit)
    else:
        opaque(visit)


def _fft(visit: Visit) -> list[int]:
    return [d % len(visit.output().shape) for d in visit.integers("dim")]


def _same_lead(visit: Visit) -> None:
    """All dimensions but the pair of real and imaginary part."""
    leading(lambda v: min(len(v.output().shape), len(v.input(0).shape)))(visit)


def _matrices(visit: Visit) -> int:
    """Batch dimensions of a decomposition of [*, p, q] matrices."""
    return len(visit.input(0).shape) - 2


_REDUCED = """
Amax Amin Aminmax Logsumexp Std Var Prod LinalgVectorNorm Norm Max Min Median Nanmedian Mode Kthvalue Nansum VarMean StdMean
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
        for name in "Amax Amin Aminmax Logsumexp Std Var Prod LinalgVectorNorm Norm Max Min Mode Kthvalue Median Nanmedian Nansum VarMean StdMean".split()
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
    "CdistBackward0": _cdist,
    "GridSampler2DBackward0": leading(lambda visit: 1),
    "GridSampler3DBackward0": leading(lambda visit: 1),
    "Im2ColBackward0": leading(lambda visit: 1),
    "Col2ImBackward0": leading(lambda visit: 1),
    **{
        f"{name}Backward0": leading(lambda visit: len(visit.output().shape) - 2)
        for name in "LinalgInvEx LinalgSolveEx LinalgSolveTriangular LinalgCholeskyEx LinalgMatrixExp LinalgQr".split()
    },
    **{
        f"{name}Backward0": leading(_matrices)
        for name in "LinalgDet LinalgSlogdet LinalgPinv LinalgSvd LinalgEigh LinalgEig LinalgLuFactorEx".split()
    },
    **{f"Fft{kind}Backward0": all_but(_fft) for kind in ("R2C", "C2R", "C2C")},
    "LinalgCrossBackward0": _cross,
    **{name: _same_lead for name in ("ViewAsRealBackward0", "ViewAsComplexBackward0")},
    "AffineGridGeneratorBackward0": leading(lambda visit: 1),
}
