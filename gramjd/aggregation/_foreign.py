"""Aggregators of other libraries: those that combine the rows of a Jacobian must not be given a Gramian."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from gramjd.aggregation._coordinatewise import Coordinatewise
from gramjd.aggregation._weighting import Weighting
from gramjd.errors import AggregatorError

# Base classes that map a Jacobian [m, n] to an update [n], and what to pass instead.
KNOWN = {
    ("torchjd", "Aggregator"): "pass its weighting, such as torchjd.aggregation.UPGradWeighting(), or gramjd's own "
    "aggregator of that name",
}
# What the argument of a function that combines the rows of a Jacobian is called.
JACOBIANS = {"J", "jac", "jacobian", "Jacobian", "grads", "gradients", "per_sample_grads"}


def refuse_foreign(aggregator: Callable[..., Any]) -> None:
    """Raise AggregatorError for what is known, or says by the name of its argument, to take a Jacobian."""
    if isinstance(aggregator, (Weighting, Coordinatewise)):
        return
    for base in type(aggregator).__mro__:
        cure = KNOWN.get((base.__module__.split(".")[0], base.__name__))
        if cure is not None:
            raise AggregatorError(
                f"{aggregator!r} combines the rows of a Jacobian, and would take the Gramian for one; expected "
                f"a function from G [m, m] to weights [m]: {cure}"
            )
    first = _first_argument(aggregator)
    if first in JACOBIANS:
        raise AggregatorError(
            f"the aggregator's argument is called {first!r}, but it is given the Gramian G = J J^T and must return "
            "weights [m]: write it as a function of G, or derive a class from gramjd.aggregation.Coordinatewise if it "
            "needs J itself"
        )


def _first_argument(function: Callable[..., Any]) -> str | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names[0] if names else None
