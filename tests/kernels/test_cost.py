"""The cost model: what it chooses, what it allows, where its constants come from."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gramjd.errors import GramjdError
from gramjd.kernels import calibrate, cost

CPU = cost.constants_of("cpu", torch.float32)
RESULTS = Path(__file__).parents[2] / "profiling/results/routes_cpu.json"
extents = st.builds(cost.Extent, *[st.integers(1, n) for n in (3, 4, 64, 300, 1024, 1024)])


@given(extents)
def test_the_quickest_route_that_applies(e: cost.Extent) -> None:
    chosen = cost.route(e, CPU)
    assert chosen in cost.options(e)
    assert cost.seconds(chosen, e, CPU) == min(cost.seconds(name, e, CPU) for name in cost.options(e))


@given(extents, st.integers(1, 1 << 24))
def test_slabs_are_kept_to_where_a_route_keeps_to_them(e: cost.Extent, slab: int) -> None:
    with cost.slabs_of(slab):
        needed = {name: cost.elements(name, e) for name in cost.options(e)}
        assert needed[cost.route(e, CPU)] <= max(cost.TEMPORARIES * slab, min(needed.values()))


def test_a_budget_can_change_the_route() -> None:
    """Pairs of positions take T^2 elements at once; rows are formed in slabs as small as need be."""
    e = cost.Extent(1, 8, 1, 600, 4096, 1024)
    assert cost.route(e, CPU) == "shared"
    with cost.slabs_within(100_000):
        assert cost.route(e, CPU) == "rows"


@pytest.mark.parametrize(
    ("nbytes", "expected"), [(0, cost.LEAST_SLAB), (1 << 20, 1 << 18), (float("inf"), cost.SLAB), (1 << 40, cost.SLAB)]
)
def test_slabs_are_neither_slow_nor_large(nbytes: float, expected: int) -> None:
    with cost.slabs_within(nbytes):
        assert cost.slab() == expected
    assert cost.slab() == cost.SLAB


@given(extents)
def test_time_grows_with_every_size(e: cost.Extent) -> None:
    """With one library: a product becomes quicker where it is large enough for the other one."""
    alone = CPU._replace(onednn_flops=0.0)
    for name in cost.options(e):
        for size in ("g", "i", "o"):
            longer = e._replace(**{size: 4 * getattr(e, size)})
            assert cost.seconds(name, longer, alone) > cost.seconds(name, e, alone)


def test_seconds_tend_to_operations_over_the_rate() -> None:
    """Without calls, moves, narrow products and symmetry, only the count of multiply-adds is left."""
    ideal = cost.Constants(flops=2.0, half=0.0, elements=math.inf, call=0.0)
    e = cost.Extent(g=2, K=1, b=32, T=20, i=300, o=500)
    assert cost.seconds("rows", e, ideal) == pytest.approx(cost.operations("rows", e), rel=0.05)
    assert cost.seconds("shared", e._replace(b=1, K=7), ideal) == cost.operations("shared", e._replace(b=1, K=7))


@given(extents, st.sampled_from([1, 1000, 1 << 20]))
def test_tiles_keep_to_the_slab(e: cost.Extent, slab: int) -> None:
    with cost.slabs_of(slab):
        o, i = cost.tile(e)
    assert 1 <= o <= e.o
    assert 1 <= i <= e.i
    assert o * i == 1 or e.K * e.b * o * i <= slab


@pytest.mark.parametrize("measured_along", [True, False])
def test_no_route_chosen_is_much_slower_than_the_best_measured(measured_along: bool) -> None:
    """On the measured grid, with the constants that were measured along with it, and with those that are shipped."""
    data = json.loads(RESULTS.read_text())
    known = cost.Constants(**data["constants"]) if measured_along else CPU
    assert len(data["grid"]) > 50
    assert {cost.route(cost.Extent(**row["extent"]), known) for row in data["grid"]} == {"rows", "pairwise", "shared"}
    for row in data["grid"]:
        times = row["ms"]
        assert times[cost.route(cost.Extent(**row["extent"]), known)] <= 1.3 * min(times.values()), row


def test_constants_are_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = cost.Constants(1e9, 5.0, 1e8, 1e-6)
    monkeypatch.setattr(calibrate, "measure", lambda device, dtype: known)
    monkeypatch.setattr(cost, "_in_use", dict(cost._in_use))
    parser = argparse.ArgumentParser()
    calibrate.add_arguments(parser)
    path = tmp_path / "folder" / "constants.json"
    assert calibrate.run(parser.parse_args(["--device", "cpu", "--output", str(path)])) == 0
    assert cost.read(path) == {"cpu": {"float32": known, "float64": known}}
    cost.load(path)
    assert cost.constants_of("cpu", torch.float64) == known


def test_the_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert cost.user_file() == tmp_path / "gramjd" / "devices.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert cost.user_file() == Path.home() / ".config" / "gramjd" / "devices.json"


def test_what_was_not_measured() -> None:
    """Another dtype goes by float32's constants, another device by the CPU's."""
    assert cost.constants_of("cpu", torch.bfloat16) == CPU
    assert cost.constants_of("no such device", torch.float32) == CPU


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"devices": {"cpu": {"float32": {"flops": 1}}}}'])
def test_a_file_without_constants_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "constants.json"
    path.write_text(text)
    with pytest.raises(GramjdError, match="gramjd calibrate"):
        cost.load(path)
    with pytest.raises(GramjdError, match="gramjd calibrate"):
        cost.load(tmp_path / "missing.json")


def test_measured_constants_are_plausible() -> None:
    known = calibrate.measure("cpu", torch.float32, seconds=1e-3)
    assert 1e8 < known.flops < 1e14
    assert 0 <= known.half < 512
    assert 1e6 < known.elements < 1e12
    assert 1e-8 < known.call < 1e-2
