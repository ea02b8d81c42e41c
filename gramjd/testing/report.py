"""All properties of one aggregator at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gramjd.errors import InputError
from gramjd.testing.properties import PROPERTIES, agrees_with
from gramjd.testing.search import Result
from gramjd.testing.subject import as_subject


@dataclass(frozen=True)
class Report:
    """What was found for each property; true if all of them hold.

    Args:
        aggregator: its name.
        results: one per property, by name.
    """

    aggregator: str
    results: Mapping[str, Result]

    def __bool__(self) -> bool:
        """All properties hold."""
        return all(result.holds for result in self.results.values())

    def __getitem__(self, name: str) -> Result:
        """The result for the property `name`."""
        return self.results[name]

    def __str__(self) -> str:
        """A line per property, and below those that fail the counterexample."""
        return "\n".join([self.aggregator, *(str(result) for result in self.results.values())])

    __repr__ = __str__

    def require(self, *names: str) -> Report:
        """Raise unless the properties (all that were checked, if none are named) hold; else return the report.

        Raises:
            AssertionError: with the counterexamples.
            InputError: a name that was not checked.
        """
        unknown = [name for name in names if name not in self.results]
        if unknown:
            raise InputError(f"{unknown[0]!r} was not checked; this report has {', '.join(self.results)}")
        failed = [result for result in map(self.results.__getitem__, names or self.results) if not result.holds]
        if failed:
            raise AssertionError("\n".join([self.aggregator, *map(str, failed)]))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        results = {name: result.to_dict() for name, result in self.results.items()}
        return {"aggregator": self.aggregator, "holds": bool(self), "properties": results}


def check_aggregator(
    aggregator: Any,
    properties: Sequence[str] | None = None,
    *,
    reference: Any = None,
    progress: Callable[[str], object] = lambda name: None,
    **options: Any,
) -> Report:
    """Look for a counterexample to each property.

    No counterexample is no proof: more `examples` make it harder to miss one. In a test,
    `check_aggregator(agg).require("non_conflicting", "linear_under_scaling")` raises an AssertionError that shows the
    counterexample; `assert check_aggregator(agg, ["non_conflicting"])` does too.

    Args:
        aggregator: a function of the Gramian, or something else that `as_subject` knows how to call.
        properties: names from `PROPERTIES`; None for all of them.
        reference: another implementation, to check that the two agree.
        progress: called with the name of each property before it is checked.
        options: see `Options`: examples, seed, rows, columns, tol, dtype, takes.

    Raises:
        InputError: an unknown property, or bad options.

    >>> from gramjd import UPGrad
    >>> print(check_aggregator(UPGrad(), ["non_conflicting", "weighted"]))
    UPGrad()
    non_conflicting                   holds  (100 matrices)
    weighted                          holds  (100 matrices)
    """
    names = list(PROPERTIES if properties is None else properties)
    unknown = [name for name in names if name not in PROPERTIES]
    if isinstance(properties, str) or unknown:
        raise InputError(f"properties must be names out of {', '.join(PROPERTIES)}; got {properties!r}")
    subject = as_subject(aggregator, options.pop("takes", None))
    results = {}
    for name in names:
        progress(name)
        results[name] = PROPERTIES[name](subject, **options)
    if reference is not None:
        progress("agrees_with")
        results["agrees_with"] = agrees_with(subject, reference, **options)
    return Report(subject.name, results)
