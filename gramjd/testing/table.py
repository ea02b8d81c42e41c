"""Which aggregator has which property, found by search, beside what the literature states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gramjd import aggregation as agg
from gramjd.testing.properties import PROPERTIES
from gramjd.testing.report import Report, check_aggregator
from gramjd.testing.strategies import Range
from gramjd.text_table import aligned

# The properties that the literature speaks of, in the order in which `stated` gives them.
STATED = ("non_conflicting", "linear_under_scaling", "weighted")
_HEADS = {
    "non_conflicting": "non-conflicting",
    "linear_under_scaling": "linear",
    "weighted": "weighted",
    "permutation_equivariant": "order",
    "scale_invariant_direction": "scale",
    "scale_free": "scale-free",
    "reduces_to_mean_without_conflict": "mean",
    "pareto_stationary_fixed_point": "fixed point",
    "deterministic": "repeatable",
}
_LEGEND = """\
Yes: no counterexample among {examples} matrices. No: one was found (--verbose shows it).
linear: under scaling of the rows. order: permutation equivariant. scale: the direction does not depend on the scale.
scale-free: nor do the weights. mean: a multiple of the mean where nothing conflicts.
fixed point: zero where no loss can gain but at another's cost.
repeatable: calls with the same matrix give the same. For the same draw and past where an aggregator draws or remembers;
the order is then judged by averages over draws."""

_TABLE_1 = "table 1"
_PAPER = "paper, elsewhere"
_OWN = "own documentation"


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Args:
        make: makes the aggregator.
        stated: what is said of it, "yes", "no" or "-" for each of `STATED`, separated by blanks.
        source: who says so.
        rows: the numbers of losses that it takes.
        label: its name; None for its repr.
    """

    make: Callable[[], Any]
    stated: str
    source: str = _OWN
    rows: Range = (1, 5)
    label: str | None = None

    @property
    def expected(self) -> dict[str, bool]:
        """What is stated, by property; of scale by the aggregator itself."""
        words = {name: word == "yes" for name, word in zip(STATED, self.stated.split(), strict=True) if word != "-"}
        scale_free = getattr(self.make(), "scale_free", None)
        return words if scale_free is None else words | {"scale_free": scale_free}


def _two_by_two(G: Tensor) -> Tensor:
    return agg.Nested()(G, torch.ones(2, 2))


ENTRIES: tuple[Entry, ...] = (
    Entry(agg.Mean, "no yes yes", _TABLE_1),
    Entry(agg.MGDA, "yes no yes", _TABLE_1),
    Entry(agg.DualProj, "yes no yes", _TABLE_1),
    Entry(agg.PCGrad, "no yes yes", _TABLE_1, label="PCGrad()"),
    Entry(agg.PCGrad, "yes yes yes", _TABLE_1, rows=(1, 2), label="PCGrad(), m <= 2"),
    Entry(agg.GradDrop, "no no no", _TABLE_1, label="GradDrop()"),
    Entry(agg.IMTLG, "no no yes", _TABLE_1),
    Entry(lambda: agg.CAGrad(0.5), "no no yes", _TABLE_1),
    Entry(lambda: agg.CAGrad(1.0), "yes no yes", _TABLE_1),
    Entry(agg.Random, "no yes yes", _TABLE_1, label="Random()"),
    Entry(agg.NashMTL, "yes no yes", _TABLE_1),
    Entry(agg.AlignedMTL, "no no yes", _TABLE_1),
    Entry(agg.UPGrad, "yes yes yes", _TABLE_1),
    Entry(agg.ConFIG, "no yes yes", _PAPER),
    Entry(lambda: agg.Constant([1.0, 2.0, 3.0]), "no yes yes", _PAPER, rows=3),
    Entry(lambda: agg.Krum(1), "no no yes", _PAPER, rows=(4, 6)),
    Entry(agg.Sum, "no yes yes", _PAPER),
    Entry(lambda: agg.TrimmedMean(1), "no no no", _PAPER, rows=(3, 5)),
    Entry(lambda: agg.AlignedMTL("median"), "no no yes"),
    Entry(lambda: agg.AlignedMTL("rmse"), "no no yes"),
    Entry(lambda: agg.FairGrad(0.5), "yes no yes"),
    Entry(agg.GradVac, "no yes yes", label="GradVac()"),
    Entry(lambda: agg.CRMOGM(agg.UPGrad()), "no - yes", label="CRMOGM(UPGrad())"),
    Entry(agg.ExcessMTL, "no no yes", label="ExcessMTL()"),
    Entry(agg.MoDo, "no no yes", label="MoDo()"),
    Entry(agg.SDMGrad, "no no yes", label="SDMGrad()"),
    Entry(agg.PCD, "no no yes", label="PCD()"),
    Entry(agg.GaussNewton, "no no yes", label="GaussNewton()"),
    Entry(agg.Sven, "no no yes", label="Sven()"),
    Entry(lambda: _two_by_two, "- - yes", rows=4, label="Nested(), 2 x 2 losses"),
)


@dataclass(frozen=True)
class PropertyTable:
    """The reports for a list of entries."""

    entries: Sequence[Entry]
    reports: Sequence[Report]
    properties: Sequence[str]
    examples: int

    def differences(self) -> list[str]:
        """One line for each property that is stated to hold, and has a counterexample."""
        return [
            f"{label}: {name} is stated to be yes ({source}), found: no"
            for label, name, source, expected in self._others()
            if expected
        ]

    def not_found(self) -> list[str]:
        """One line for each property that is stated not to hold, and of which no counterexample was found.

        It contradicts nothing: among few matrices there may be none that shows it.
        """
        return [
            f"{label}: {name} is stated to be no ({source}); no counterexample among {self.examples} matrices: try more"
            for label, name, source, expected in self._others()
            if not expected
        ]

    def _others(self) -> list[tuple[str, str, str, bool]]:
        """Aggregator, property, source and statement, where what was found is something else."""
        return [
            (label, name, entry.source, expected)
            for label, entry, report in self._lines()
            for name, expected in entry.expected.items()
            if name in report.results and report[name].holds != expected
        ]

    def agreement(self) -> str:
        """How many of the statements were confirmed, in a sentence."""
        total = sum(name in report.results for _, entry, report in self._lines() for name in entry.expected)
        return f"{total - len(self._others())} of {total} statements confirmed."

    def __str__(self) -> str:
        """The table, what the words mean, and where it differs from what is stated."""
        rows = [["", *(_HEADS[name] for name in self.properties), "stated in"]]
        for label, entry, report in self._lines():
            cells = [_word(report[name].holds) for name in self.properties]
            rows.append([label, *cells, entry.source])
        notes = [self.agreement(), *self.differences(), *self.not_found()]
        return "\n".join([aligned(rows), "", _LEGEND.format(examples=self.examples), *notes])

    def counterexamples(self) -> str:
        """What was found behind each no."""
        failing = [(label, r) for label, _, report in self._lines() for r in report.results.values() if not r.holds]
        return "\n".join(f"{label}\n{result}\n" for label, result in failing)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        aggregators: Mapping[str, Any] = {
            label: {**report.to_dict()["properties"], "stated": entry.expected, "source": entry.source}
            for label, entry, report in self._lines()
        }
        return {
            "examples": self.examples,
            "aggregators": aggregators,
            "differences": self.differences(),
            "not_found": self.not_found(),
        }

    def _lines(self) -> list[tuple[str, Entry, Report]]:
        return [(e.label or r.aggregator, e, r) for e, r in zip(self.entries, self.reports, strict=True)]


def property_table(
    entries: Sequence[Entry] = ENTRIES,
    properties: Sequence[str] = tuple(PROPERTIES),
    *,
    examples: int = 100,
    seed: int = 0,
    shrink: bool = True,
    progress: Callable[[str], object] = lambda label: None,
) -> PropertyTable:
    """Check every entry.

    Args:
        entries: the lines.
        properties: the columns, names from `PROPERTIES`.
        examples: matrices tried for each cell.
        seed: of the search.
        shrink: False for counterexamples as they were found, much sooner.
        progress: called with each label before its aggregator is checked.

    Source for what is stated: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization (2024), table 1.
    """
    reports = []
    for entry in entries:
        aggregator = entry.make()
        progress(entry.label or repr(aggregator))
        options: dict[str, Any] = {"examples": examples, "seed": seed, "rows": entry.rows, "shrink": shrink}
        reports.append(check_aggregator(aggregator, properties, **options))
    return PropertyTable(entries, reports, properties, examples)


def _word(holds: bool) -> str:
    return "yes" if holds else "no"
