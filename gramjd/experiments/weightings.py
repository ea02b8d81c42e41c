"""The eleven aggregators of the paper's Table 1, in the order in which a short time budget should reach them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gramjd import aggregation
from gramjd.aggregation import Coordinatewise, Weighting
from gramjd.errors import InputError

RIDGE = 1e-4  # of the published implementation
CAGRAD_RADIUS = 0.5  # Table 1 has 0 <= c < 1; the value is ours, in the middle


@dataclass(frozen=True)
class Entry:
    """A line of Table 1.

    Args:
        make: seed to aggregator; most have no use for the seed.
        toy_rate: what the paper multiplies its learning rate by on the toy problems.
        colour: in plots.
    """

    make: Callable[[int], Weighting | Coordinatewise]
    toy_rate: float
    colour: str


TABLE: dict[str, Entry] = {
    "UPGrad": Entry(lambda seed: aggregation.UPGrad(), 1.0, "#c8553d"),
    "Mean": Entry(lambda seed: aggregation.Mean(), 1.0, "#4a6fa5"),
    "MGDA": Entry(lambda seed: aggregation.MGDA(), 1.0, "#2a9d8f"),
    "DualProj": Entry(lambda seed: aggregation.DualProj(), 1.0, "#e9a03b"),
    "PCGrad": Entry(aggregation.PCGrad, 0.5, "#7b4fa3"),
    "Nash-MTL": Entry(lambda seed: aggregation.NashMTL(), 2.0, "#8c6d46"),
    "Aligned-MTL": Entry(lambda seed: aggregation.AlignedMTL(), 1.0, "#d16ba5"),
    "IMTL-G": Entry(lambda seed: aggregation.IMTLG(), 2.0, "#5b8c3a"),
    "CAGrad": Entry(lambda seed: aggregation.CAGrad(CAGRAD_RADIUS), 1.0, "#3a3a3a"),
    "RGW": Entry(aggregation.Random, 1.0, "#8a8a8a"),
    "GradDrop": Entry(lambda seed: aggregation.GradDrop(seed=seed), 0.5, "#b08968"),
}


VARIANTS: dict[str, Entry] = {"UPGrad + ridge": Entry(lambda seed: aggregation.UPGrad(ridge=RIDGE), 1.0, "#7f1d1d")}
ENTRIES = TABLE | VARIANTS


def select(names: str) -> list[str]:
    """Names from a comma-separated list, in which `all` stands for those of Table 1; case does not matter.

    Raises:
        InputError: a name is neither in the table nor a variant.

    >>> select("upgrad,mgda")
    ['UPGrad', 'MGDA']
    """
    if names == "all":
        return list(TABLE)
    by_lower = {name.lower(): name for name in ENTRIES}
    unknown = [part for part in names.split(",") if part.lower() not in by_lower]
    if unknown:
        raise InputError(f"got {', '.join(unknown)}; expected 'all' or names among: {', '.join(ENTRIES)}")
    return list(dict.fromkeys(by_lower[part.lower()] for part in names.split(",")))
