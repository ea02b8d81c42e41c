"""Property tests for aggregators: strategies for Jacobians and Gramians, checks, and one call for all of them."""

from gramjd.testing import _extra  # noqa: F401  first: it says which extra is missing
from gramjd.testing.properties import (
    PROPERTIES,
    agrees_with,
    deterministic,
    linear_under_scaling,
    non_conflicting,
    pareto_stationary_fixed_point,
    permutation_equivariant,
    reduces_to_mean_without_conflict,
    scale_free,
    scale_invariant_direction,
    weighted,
)
from gramjd.testing.report import Report, check_aggregator
from gramjd.testing.search import Counterexample, Options, Result
from gramjd.testing.strategies import gramians, jacobians
from gramjd.testing.subject import Subject, as_subject

__all__ = [
    "PROPERTIES",
    "Counterexample",
    "Options",
    "Report",
    "Result",
    "Subject",
    "agrees_with",
    "as_subject",
    "check_aggregator",
    "deterministic",
    "gramians",
    "jacobians",
    "linear_under_scaling",
    "non_conflicting",
    "pareto_stationary_fixed_point",
    "permutation_equivariant",
    "reduces_to_mean_without_conflict",
    "scale_free",
    "scale_invariant_direction",
    "weighted",
]
