"""The table of all aggregators: what each needs and keeps, and what is claimed and tested of it."""

from __future__ import annotations

import inspect
from typing import Any

from gramjd import aggregation
from gramjd.aggregation import Coordinatewise, LossWeighting, Weighting
from gramjd.testing.table import ENTRIES

# The pages, and the aggregators on each in the order in which they stand there.
PAGES = {
    "cone": ("UPGrad", "DualProj", "CAGrad", "MGDA"),
    "fair": ("NashMTL", "FairGrad", "IMTLG", "AlignedMTL", "ConFIG"),
    "surgery": ("PCGrad", "GradVac", "GradDrop"),
    "baselines": ("Mean", "Sum", "Constant", "Random"),
    "robust": ("Krum", "TrimmedMean"),
    "least-squares": ("GaussNewton", "Sven"),
    "adaptive": ("ExcessMTL", "PCD", "MoDo", "SDMGrad", "CRMOGM"),
    "nested": ("Nested",),
}
HEAD = "| aggregator | looks at | keeps | non-conflicting | linear | scale-free |\n|---|---|---|---|---|---|"


def table() -> str:
    """One line per aggregator, linked to its section; of several entries of one class those that differ by options."""
    lines = [HEAD]
    for page, names in PAGES.items():
        for name in names:
            lines += _lines(f"{page}.md#gramjd.{name}", getattr(aggregation, name))
    return "\n".join(lines)


def _lines(link: str, cls: type) -> list[str]:
    looks, keeps = _looks(cls), _keeps(cls)
    if not _entries(cls):
        return [
            f"| [`{cls.__name__}()`]({link}) | {looks} | as its parts | as its parts | as its parts | as its parts |"
        ]
    return [
        f"| [`{label}`]({link}) | {looks} | {keeps} | {words[0]} | {words[1]} | {_scale(made)} |"
        for label, words, made in _entries(cls)
    ]


def _entries(cls: type) -> list[tuple[str, list[str], Any]]:
    found = [(entry, entry.make()) for entry in ENTRIES]
    return [(entry.label or repr(made), entry.stated.split(), made) for entry, made in found if type(made) is cls]


def _looks(cls: type) -> str:
    if issubclass(cls, Coordinatewise):
        return "J, column by column"
    if cls.__name__ in ("GaussNewton", "Sven"):
        return "G, residuals"
    if cls.__name__ == "Nested":
        return "G, shape of the losses"
    takes = issubclass(cls, Weighting) and cls.takes_losses
    return "G, losses" if takes and issubclass(cls, LossWeighting) else "G"


def _keeps(cls: type) -> str:
    kept = [name.replace("_", " ") for name in getattr(cls, "_names", ())]
    draws = "seed" in inspect.signature(cls).parameters
    return ", ".join([*kept, *(["a generator"] if draws else [])]) or "-"


def _scale(made: Any) -> str:
    return {True: "yes", False: "no", None: "-"}[made.scale_free]
