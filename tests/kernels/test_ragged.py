"""Several factors of one parameter: what each route takes, and which one is chosen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramjd.kernels import cost, cross, outer, ragged
from gramjd.kernels.outer import Extent
from tests.kernels.strategies import CPU, IDEAL


@st.composite
def several(draw: st.DrawFn) -> tuple[Extent, ...]:
    """Factors that agree in g, i and o."""
    g, i, o = draw(st.integers(1, 2)), draw(st.integers(1, 300)), draw(st.integers(1, 300))
    parts = st.builds(
        Extent, st.just(g), st.integers(1, 2), st.integers(1, 40), st.integers(1, 60), st.just(i), st.just(o)
    )
    return tuple(draw(st.lists(parts, min_size=2, max_size=4)))


def test_operations_by_hand() -> None:
    """Two losses with three tokens each, and one with one."""
    extents = (Extent(1, 1, 2, 3, 5, 7), Extent(1, 1, 1, 1, 5, 7))
    assert ragged.operations("rows", extents, IDEAL) == 5 * 7 * (6 + 1 + 9)
    own = outer.operations("rows", extents[0]), outer.operations("pairwise", extents[0])
    between = cross.operations("rows", *extents), cross.operations("pairwise", *extents)
    assert own == (5 * 7 * (6 + 4), (5 + 7) * 36 // 2)
    assert between == (5 * 7 * (6 + 1 + 2), (5 + 7) * 6)
    assert ragged.operations("pairs", extents, IDEAL) in {a + 12 + b for a in own for b in between}


@given(several())
def test_the_fewest_operations_where_nothing_else_costs(extents: tuple[Extent, ...]) -> None:
    """Up to a factor of two, as symmetry is counted by whole samples."""
    with cost.chunks_of(1 << 40):
        chosen = ragged.route(extents, IDEAL)
        counts = {name: ragged.operations(name, extents, IDEAL) for name in ragged.ESTIMATES}
    assert counts[chosen] <= 2.1 * min(counts.values())


@given(several(), st.integers(1, 1 << 24))
def test_chunks_are_kept_to_where_a_route_keeps_to_them(extents: tuple[Extent, ...], chunk: int) -> None:
    with cost.chunks_of(chunk):
        needed = {name: ragged.estimate(name, extents, CPU).elements for name in ragged.ESTIMATES}
        assert needed[ragged.route(extents, CPU)] <= max(cost.TEMPORARIES * chunk, min(needed.values()))


@pytest.mark.parametrize(("tokens", "expected"), [(2, "pairs"), (400, "rows")])
def test_few_tokens_are_paired_and_many_are_multiplied_out(tokens: int, expected: str) -> None:
    extents = tuple(Extent(1, 1, 32, T, 512, 512) for T in (tokens, tokens + 1))
    assert ragged.route(extents, CPU) == expected


@given(several())
def test_rows_grow_with_the_tokens_alone(extents: tuple[Extent, ...]) -> None:
    """Twice the tokens are twice the work of forming rows; products of rows stay what they are."""
    twice = tuple(e._replace(T=2 * e.T) for e in extents)
    once, both = (ragged.operations("rows", some, CPU) for some in (extents, twice))
    e = extents[0]
    assert both - once == e.g * e.i * e.o * sum(f.K * f.b * f.T for f in extents)
