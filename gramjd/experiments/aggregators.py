"""The aggregators of the experiments: those of the paper's Table 1, by its names, and others that the demo takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gramjd import aggregation
from gramjd.aggregation import Coordinatewise, Weighting
from gramjd.errors import InputError
from gramjd.profiling.figure_style import BLUE, GREEN, GREY, INK, ORANGE, PINK, SKY, VERMILION

RIDGE = 1e-4  # of the published implementation
NEGLIGIBLE = 0.1  # ours: gradients shorter than a tenth of the root mean square length do not object
CAGRAD_RADIUS = 0.5  # Table 1 has 0 <= c < 1; the value is ours, in the middle


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Args:
        make: seed to aggregator; most have no use for the seed.
        colour: in plots.
        toy_rate: what the paper multiplies its learning rate by on the toy problems.
        dash: of the line, which tells apart those of one colour.
    """

    make: Callable[[int], Weighting | Coordinatewise]
    colour: str
    toy_rate: float = 1.0
    dash: str = "-"


# In the order in which a short time budget should reach them.
TABLE: dict[str, Entry] = {
    "UPGrad": Entry(lambda seed: aggregation.UPGrad(), VERMILION),
    "Mean": Entry(lambda seed: aggregation.Mean(), BLUE),
    "MGDA": Entry(lambda seed: aggregation.MGDA(), GREEN),
    "DualProj": Entry(lambda seed: aggregation.DualProj(), ORANGE),
    "PCGrad": Entry(aggregation.PCGrad, PINK, 0.5),
    "Nash-MTL": Entry(lambda seed: aggregation.NashMTL(), SKY, 2.0),
    "Aligned-MTL": Entry(lambda seed: aggregation.AlignedMTL(), PINK, dash="--"),
    "IMTL-G": Entry(lambda seed: aggregation.IMTLG(), GREEN, 2.0, "--"),
    "CAGrad": Entry(lambda seed: aggregation.CAGrad(CAGRAD_RADIUS), INK),
    "RGW": Entry(aggregation.Random, GREY, dash=":"),
    "GradDrop": Entry(lambda seed: aggregation.GradDrop(seed=seed), ORANGE, 0.5, "--"),
}
OTHERS: dict[str, Entry] = {
    "FairGrad": Entry(lambda seed: aggregation.FairGrad(1.0), SKY, dash="--"),
    "ConFIG": Entry(lambda seed: aggregation.ConFIG(), GREEN, dash=":"),
    "GradVac": Entry(lambda seed: aggregation.GradVac(seed=seed), PINK, dash=":"),
    "Sum": Entry(lambda seed: aggregation.Sum(), BLUE, dash=":"),
}
VARIANTS: dict[str, Entry] = {
    "UPGrad + ridge": Entry(lambda seed: aggregation.UPGrad(ridge=RIDGE), VERMILION, dash="--"),
    "UPGrad + negligible": Entry(lambda seed: aggregation.UPGrad(negligible=NEGLIGIBLE), VERMILION, dash=":"),
}
ENTRIES = TABLE | VARIANTS | OTHERS

# The same by the names of their classes, as one writes them in a program.
BY_CLASS = {type(entry.make(0)).__name__: entry for entry in (TABLE | OTHERS).values()}


def select(names: str) -> list[str]:
    """Names from a comma-separated list, in which `all` stands for those of Table 1; case does not matter.

    Raises:
        InputError: a name is not one of `ENTRIES`.

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
