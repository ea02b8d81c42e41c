"""The cost model: what it chooses and what it allows. It looks at constants and sizes alone, on every machine."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramjd.kernels import cost, outer, use_backend
from tests.kernels.onednn import needs_onednn
from tests.kernels.strategies import CPU, IDEAL, UNKNOWN

RESULTS = Path(__file__).parents[2] / "profiling/results/routes_cpu.json"
extents = st.builds(outer.Extent, *[st.integers(1, n) for n in (3, 4, 64, 300, 1024, 1024)])


@given(extents)
def test_the_fewest_operations_where_nothing_else_costs(e: outer.Extent) -> None:
    """Up to a factor of two: `operations` counts whole samples, while symmetry saves up to a half."""
    chosen = outer.route(e, IDEAL)
    allowed = [
        name for name in outer.options(e) if outer.estimate(name, e, CPU).elements <= cost.TEMPORARIES * cost.CHUNK
    ]
    assert chosen in (allowed or outer.options(e))
    if allowed:
        assert outer.operations(chosen, e) <= 2.1 * min(outer.operations(name, e) for name in allowed)


@pytest.mark.parametrize("known", [CPU, UNKNOWN])
@pytest.mark.parametrize("width", [64, 256, 768])
def test_pairs_of_positions_up_to_the_length_that_was_measured(width: int, known: cost.Constants) -> None:
    """For many samples rows win from about T = 1.4 sqrt(i o / (i + o)) positions on."""
    turn = 1.4 * math.sqrt(width / 2)
    assert outer.route(outer.Extent(1, 1, 256, int(turn / 1.5), width, width), known) == "pairwise"
    assert outer.route(outer.Extent(1, 1, 256, math.ceil(turn * 1.5), width, width), known) == "rows"


@needs_onednn
@given(extents)
def test_the_same_on_every_machine(e: outer.Extent) -> None:
    """Given the constants, neither the backend nor this machine's CPU changes a route."""
    found = []
    for backend in ("torch", "onednn"):
        with use_backend(backend):
            found.append([outer.route(e, known) for known in (CPU, UNKNOWN)])
    assert found[0] == found[1]


@given(extents, st.integers(1, 1 << 24))
def test_chunks_are_kept_to_where_a_route_keeps_to_them(e: outer.Extent, chunk: int) -> None:
    with cost.chunks_of(chunk):
        needed = {name: outer.estimate(name, e, CPU).elements for name in outer.options(e)}
        assert needed[outer.route(e, CPU)] <= max(cost.TEMPORARIES * chunk, min(needed.values()))


def test_a_budget_can_change_the_route() -> None:
    """Pairs of positions take T^2 elements at once; rows are formed in chunks as small as need be."""
    e = outer.Extent(1, 8, 1, 600, 4096, 1024)
    assert outer.route(e, CPU) == "shared"
    with cost.chunks_within(100_000):
        assert outer.route(e, CPU) == "rows"


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [(0, cost.LEAST_CHUNK), (1 << 20, 1 << 18), (float("inf"), cost.CHUNK), (1 << 40, cost.CHUNK)],
)
def test_chunks_are_neither_slow_nor_large(nbytes: float, expected: int) -> None:
    with cost.chunks_within(nbytes):
        assert cost.chunk() == expected
    assert cost.chunk() == cost.CHUNK


@given(extents)
def test_time_grows_with_every_size(e: outer.Extent) -> None:
    """With one library: a product becomes quicker where it is large enough for the other one."""
    alone = CPU._replace(onednn_flops=0.0)
    for name in outer.options(e):
        for size in ("g", "i", "o"):
            longer = e._replace(**{size: 4 * getattr(e, size)})
            assert outer.estimate(name, longer, alone).seconds > outer.estimate(name, e, alone).seconds


def test_seconds_tend_to_operations_over_the_rate() -> None:
    """Without calls, moves, narrow products and symmetry, only the count of multiply-adds is left."""
    e = outer.Extent(g=2, K=1, b=32, T=20, i=300, o=500)
    assert outer.estimate("rows", e, IDEAL).seconds == pytest.approx(outer.operations("rows", e), rel=0.05)
    e = e._replace(b=1, K=7)
    assert outer.estimate("shared", e, IDEAL).seconds == outer.operations("shared", e)


@given(extents, st.sampled_from([1, 1000, 1 << 20]))
def test_tiles_keep_to_the_chunk(e: outer.Extent, chunk: int) -> None:
    with cost.chunks_of(chunk):
        o, i = outer.tile(e)
    assert 1 <= o <= e.o
    assert 1 <= i <= e.i
    assert o * i == 1 or e.K * e.b * o * i <= chunk


@pytest.mark.parametrize("measured_along", [True, False])
def test_no_route_chosen_is_much_slower_than_the_best_measured(measured_along: bool) -> None:
    """On the measured grid, with the constants that were measured along with it, and with those that are shipped.

    Both have oneDNN's, as the grid was measured with its products.
    """
    data = json.loads(RESULTS.read_text())
    assert data["products"]["gramjd"].startswith("oneDNN")
    assert CPU.onednn_flops > 0
    known = cost.Constants(**data["constants"]) if measured_along else CPU
    assert len(data["grid"]) > 50
    assert {outer.route(outer.Extent(**row["extent"]), known) for row in data["grid"]} == {"rows", "pairwise", "shared"}
    for row in data["grid"]:
        times = row["ms"]
        assert times[outer.route(outer.Extent(**row["extent"]), known)] <= 1.3 * min(times.values()), row
