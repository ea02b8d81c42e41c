"""The properties: each takes an aggregator, looks for a counterexample, and returns what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from gramjd.testing import measures
from gramjd.testing.search import Case, Options, Result, search
from gramjd.testing.strategies import LEAST, between, jacobians, positive_vectors
from gramjd.testing.subject import as_subject

_CONFLICTS = ("any", "some", "strong", "stationary")
# Small matrices that are known to take aggregators apart; tried first as they stand, and drawn now and then.
_KNOWN = (
    [[1, 0], [-9, 1]],  # a long gradient against a short one
    [[8, 0, 1], [0, 8, 1], [-8, -8, 1]],  # a common direction that is small beside the conflict
    [[8, 0, 1], [-4, 7, 1], [-4, -7, 1]],
    [[2, -1, -1], [-1, 2, -1], [-1, -1, 2]],  # all pairs conflict, and nobody can gain
    [[5, 1], [-3, 4], [-2, -4]],
    [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [-2, -2, -2, 1]],
    [[8, 0, 0, 1], [0, 8, 0, 1], [0, 0, 8, 1], [-8, -8, -8, 1]],
    [[2, 0], [0, 2], [3, 3]],  # nothing conflicts, one gradient is longer
    [[1], [2], [-3], [-4]],  # in directions that balance: their sum is zero up to rounding
    [[1, 2], [-2, -4], [2, 1], [-2, -1]],
)
# Powers of two, so that scaling rounds nothing. Squared they stay in range, also in float32.
_EXPONENTS = (-20, 20)


def non_conflicting(aggregator: Any, **options: Any) -> Result:
    """`J A(J) >= 0` for all J: to first order no loss increases.

    Also for small and large gradients, lengths that differ, and nearly dependent rows. For an aggregator that draws:
    with probability one, so for each of several draws.

    Args:
        aggregator: see `as_subject`.
        options: see `Options`; so for all properties.

    >>> from gramjd import Mean, UPGrad
    >>> bool(non_conflicting(UPGrad()))
    True
    >>> print(non_conflicting(Mean()).counterexample.J)
    tensor([[ 1.,  0.],
            [-9.,  1.]], dtype=torch.float64)
    """
    return _run("non_conflicting", aggregator, _anything_scaled, measures.conflict, options)


def linear_under_scaling(aggregator: Any, **options: Any) -> Result:
    """`c -> A(diag(c) J)` is linear over c > 0: `A(diag(c + d) J) = A(diag(c) J) + A(diag(d) J)` for all J and c, d.

    For an aggregator that draws: for the same draw on both sides, which implies linearity in expectation.
    """
    return _run("linear_under_scaling", aggregator, _anything_with_two_scalings, measures.nonlinearity, options, "c d")


def weighted(aggregator: Any, **options: Any) -> Result:
    """`A(J) = J^T w` for some w: the update is a combination of the gradients.

    True of every function of the Gramian by construction; for those it says that the weights are finite.
    """
    return _run("weighted", aggregator, _anything, measures.outside_span, options)


def permutation_equivariant(aggregator: Any, **options: Any) -> Result:
    """`A(P J) = A(J)` for all permutations P of the losses; in weights, `W(P G P^T) = P W(G)` up to `J^T`.

    For an aggregator that draws, whose draws belong to the order: the averages over many draws are compared, and may
    differ by six standard errors.
    """
    return _run(
        "permutation_equivariant", aggregator, _anything_with_order, measures.order_dependence, options, "order"
    )


def scale_invariant_direction(aggregator: Any, **options: Any) -> Result:
    """`A(s J)` points where `A(J)` does, for all s > 0 (from 2^-20 to 2^20) and the same draw; zero stays zero."""
    return _run("scale_invariant_direction", aggregator, _anything_with_scale, measures.scale_dependence, options, "s")


def scale_free(aggregator: Any, **options: Any) -> Result:
    """`A(s J) = s A(J)` for all s > 0 (from 2^-20 to 2^20) and the same draw; in weights, `W(s^2 G) = W(G)`.

    What is kept from calls before was not scaled. Losses, where they are asked for, are.

    >>> from gramjd.aggregation import NashMTL
    >>> bool(scale_free(NashMTL()))
    False
    """
    return _run("scale_free", aggregator, _anything_with_scale, measures.inhomogeneity, options, "s")


def reduces_to_mean_without_conflict(aggregator: Any, **options: Any) -> Result:
    """`A(J)` is a positive multiple of the mean of the rows wherever no two rows have a negative inner product."""
    cases = _without_conflict
    return _run("reduces_to_mean_without_conflict", aggregator, cases, measures.distance_to_mean, options)


def pareto_stationary_fixed_point(aggregator: Any, **options: Any) -> Result:
    """`A(J) = 0` wherever `J^T v = 0` for some v with all entries positive: no loss can gain but at another's cost."""
    return _run("pareto_stationary_fixed_point", aggregator, _stationary, measures.movement, options)


def deterministic(aggregator: Any, **options: Any) -> Result:
    """Calls with the same J give the same update up to rounding, also after calls with other matrices.

    Fails for aggregators that draw random numbers and for those that remember: on purpose or not. Not to the last
    digit: the products of some linear algebra libraries depend on where in memory a matrix starts.
    """
    return _run("deterministic", aggregator, _anything, measures.repetition, options)


def agrees_with(aggregator: Any, reference: Any, **options: Any) -> Result:
    """`A(J) = B(J)` for another implementation B, called as `as_subject(reference)` says.

    torch, numpy and random are seeded alike before each call.

    >>> from gramjd import UPGrad
    >>> from gramjd.aggregation import PCGrad
    >>> bool(agrees_with(PCGrad(), lambda G: 2 * UPGrad()(G), rows=2))
    True
    """
    return _run("agrees_with", aggregator, _anything, measures.disagreement(as_subject(reference)), options)


Property = Callable[..., Result]
PROPERTIES: dict[str, Property] = {
    check.__name__: check
    for check in (
        non_conflicting,
        linear_under_scaling,
        weighted,
        permutation_equivariant,
        scale_invariant_direction,
        scale_free,
        reduces_to_mean_without_conflict,
        pareto_stationary_fixed_point,
        deterministic,
    )
}


def _run(
    name: str, aggregator: Any, cases: Any, measure: measures.Measure, options: dict[str, Any], keys: str = ""
) -> Result:
    """Search; the known matrices first, where they fit. `keys` are what a case has beside its matrix and draw."""
    chosen = Options(**options)
    known = _first_cases(chosen, keys.split()) if cases in _FROM_KNOWN else []
    return search(name, aggregator, cases, measure, chosen, known)


def _first_cases(options: Options, keys: Sequence[str]) -> list[Case]:
    """A case for each known matrix: the same scales and the same order whenever they are asked for."""
    cases = []
    for J in _known(options):
        m = len(J)
        c = torch.tensor([1.0, 3.0, 0.5, 10.0, 2.0], dtype=torch.float64).repeat(m // 5 + 1)[:m]
        more = {"c": c, "d": c.flip(0) * 2, "s": 2.0**13, "order": [*range(1, m), 0]}
        cases.append({"J": J, "draw": 0, **{key: more[key] for key in keys}})
    return cases


def _known(options: Options) -> list[Tensor]:
    """The known matrices of the shapes that are allowed."""
    rows, columns = between(options.rows, "rows", 1), between(options.columns, "columns", 1)
    known = [torch.tensor(J, dtype=options.dtype) for J in _KNOWN]
    return [J for J in known if rows[0] <= J.shape[0] <= rows[1] and columns[0] <= J.shape[1] <= columns[1]]


def _matrices(options: Options, *conflicts: str, **structure: Any) -> st.SearchStrategy[Tensor]:
    """Matrices of the kinds of conflict that fit into the rows and columns allowed; of several, the known ones too."""
    rows, columns = between(options.rows, "rows", 1), between(options.columns, "columns", 1)
    fitting = [kind for kind in conflicts if rows[1] >= LEAST[kind] and (kind != "strong" or columns[1] > 1)]
    drawn = [
        jacobians(options.rows, options.columns, conflict=kind, dtype=options.dtype, **structure) for kind in fitting
    ]
    known = _known(options)
    if len(conflicts) > 1 and known:
        drawn += [st.sampled_from(known)] * 2
    return st.one_of(*drawn)


@st.composite
def _case(
    draw: st.DrawFn,
    matrices: st.SearchStrategy[Tensor],
    **more: Callable[[int], st.SearchStrategy[Any]],
) -> Case:
    J = draw(matrices)
    extra = {name: draw(make(len(J))) for name, make in more.items()}
    return {"J": J, "draw": draw(st.integers(0, 7)), **extra}


def _anything(options: Options) -> st.SearchStrategy[Case]:
    return _case(_matrices(options, *_CONFLICTS, near_singular=False))


def _anything_scaled(options: Options) -> st.SearchStrategy[Case]:
    matrices = _matrices(options, *_CONFLICTS, row_scale=(-6, 6))
    # Ends and middle of the range: what changes with the size of the gradients shows there.
    scales = st.sampled_from([1.0, 2.0 ** _EXPONENTS[0], 2.0**-10, 2.0**10, 2.0 ** _EXPONENTS[1]])
    return _case(st.builds(torch.mul, matrices, scales))


def _anything_with_two_scalings(options: Options) -> st.SearchStrategy[Case]:
    matrices = _matrices(options, *_CONFLICTS, near_singular=False)
    return _case(matrices, c=positive_vectors, d=positive_vectors)


def _anything_with_order(options: Options) -> st.SearchStrategy[Case]:
    return _case(_matrices(options, *_CONFLICTS, near_singular=False), order=lambda m: st.permutations(range(m)))


def _anything_with_scale(options: Options) -> st.SearchStrategy[Case]:
    matrices = _matrices(options, *_CONFLICTS, near_singular=False)
    return _case(matrices, s=lambda m: st.integers(*_EXPONENTS).map(lambda k: 2.0**k))


def _without_conflict(options: Options) -> st.SearchStrategy[Case]:
    return _case(_matrices(options, "none"))


def _stationary(options: Options) -> st.SearchStrategy[Case]:
    return _case(_matrices(options, "stationary"))


# Strategies for any kind of conflict, in which the known matrices have a place.
_FROM_KNOWN = (
    _anything,
    _anything_scaled,
    _anything_with_two_scalings,
    _anything_with_order,
    _anything_with_scale,
)
