"""`gramjd calibrate` without a clock: constants from given timings, and when nothing is written."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gramjd.errors import GramjdError
from gramjd.kernels import calibrate, cost, devices, machine
from gramjd.kernels.devices import Constants

SINGLE = Constants(1e11, 3.0, 2e10, 1e-6, 2.5e11, 1e-5)
DOUBLE = Constants(5e10, 8.0, 1e10, 1e-6)


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_loaded", None)


def arguments(path: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    calibrate.add_arguments(parser)
    return parser.parse_args(["--device", "cpu", "--output", str(path)])


def timings(known: Constants, device: str = "cpu") -> dict[str, float]:
    """What an ideal clock would show on a machine with these constants, by the formula of the cost model."""
    n = calibrate.size_for(device)
    found = {"a large product": 2 * n**3 / known.flops * (1 + known.half / n) ** 3}
    best = known.flops / (1 + known.half / n) ** 3
    found |= {
        f"a product of {k} long rows": 2 * k * k * 16 * n / best * (1 + known.half / k) ** 2 for k in calibrate.SMALL
    }
    found |= {"moving elements": calibrate.moved(device) / known.elements, "a call": known.call}
    if known.onednn_flops:
        found |= {"a call of oneDNN": known.onednn_call}
        found |= {"a large product by oneDNN": known.onednn_call + 2 * n**3 / known.onednn_flops}
    return found


rates = st.floats(1e8, 1e14)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@given(st.builds(Constants, rates, st.floats(0, 100), rates, st.floats(1e-8, 1e-3), st.just(0.0), st.just(0.0)))
def test_the_constants_explain_the_timings(device: str, known: Constants) -> None:
    found = calibrate.constants(timings(known, device), device)
    assert tuple(found) == pytest.approx(tuple(known), rel=1e-6, abs=1e-9)
    assert found.call == known.call


def test_the_constants_of_onednn() -> None:
    assert calibrate.constants(timings(SINGLE), "cpu")[-2:] == pytest.approx(SINGLE[-2:], abs=0.0)


def test_the_best_pass_counts() -> None:
    first, second = timings(SINGLE), {name: 1.2 * t for name, t in timings(SINGLE).items()}
    assert calibrate.best([second, first], "") == first


@pytest.mark.parametrize("name", timings(SINGLE))
def test_passes_that_disagree_are_refused(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whichever piece it is and whichever pass it was, and then no file is touched."""
    for disturbed in range(calibrate.PASSES):
        number = itertools.count()

        def passes(device: str, dtype: torch.dtype, seconds: float, number=number, disturbed=disturbed):
            found = timings(SINGLE)
            return found | {name: 1.3 * found[name]} if next(number) == disturbed else found

        monkeypatch.setattr(calibrate, "time_all", passes)
        with pytest.raises(GramjdError, match=f"cpu float32, {name}: .* factor of 1.30, and 1.25 is allowed.*idle"):
            calibrate.run(arguments(tmp_path / "constants.json"))
    assert list(tmp_path.iterdir()) == []


IMPLAUSIBLE = {
    "float64 is faster": (SINGLE, DOUBLE._replace(flops=2e11)),
    "float64 hardly runs": (SINGLE, DOUBLE._replace(flops=1e8)),
    "float64 moves faster": (SINGLE, DOUBLE._replace(elements=5e10)),
    "a call in float64 takes long": (SINGLE, DOUBLE._replace(call=1e-4)),
    "moving is faster than computing": (SINGLE._replace(elements=3e12), DOUBLE._replace(elements=3e12)),
    "no product is large": (SINGLE._replace(half=600.0), DOUBLE),
    "oneDNN is out of reach": (SINGLE._replace(onednn_flops=1e13), DOUBLE),
}


@pytest.mark.parametrize(("single", "double"), IMPLAUSIBLE.values(), ids=IMPLAUSIBLE)
def test_implausible_numbers_are_refused(
    single: Constants, double: Constants, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(calibrate, "measure", lambda _, dtype: single if dtype == torch.float32 else double)
    with pytest.raises(GramjdError, match=r"implausible on cpu: .* expected"):
        calibrate.run(arguments(tmp_path / "constants.json"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rate", "expected"), [(1.24e11, "torch"), (1.26e11, "onednn"), (0.0, "torch")])
def test_constants_are_written_and_used(
    rate: float, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = SINGLE._replace(onednn_flops=rate)
    monkeypatch.setattr(calibrate, "measure", lambda _, dtype: single if dtype == torch.float32 else DOUBLE)
    path = tmp_path / "folder" / "constants.json"
    assert calibrate.run(arguments(path)) == 0
    cpu = machine.this_cpu()
    assert json.loads(path.read_text())["cpu"] == cpu._asdict()
    assert devices.read(path) == devices.Measured(cpu, expected, {"cpu": {"float32": single, "float64": DOUBLE}})
    cost.load(path)
    assert cost.constants_of("cpu", torch.float64) == DOUBLE
    printed = capsys.readouterr().out
    assert f"CPU: {cpu}" in printed
    assert ("large float32 products: oneDNN" in printed) == (expected == "onednn")


def test_a_file_that_is_written_over_keeps_its_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibrate, "measure", lambda _, dtype: SINGLE if dtype == torch.float32 else DOUBLE)
    path = tmp_path / "constants.json"
    before = devices.Measured(machine.this_cpu(), "torch", {}, kernels={"sm_90": ("rows",)})
    for text, kept in ((json.dumps(before.to_dict()), {"sm_90": ("rows",)}), ("no file of this form", {})):
        path.write_text(text)
        assert calibrate.run(arguments(path)) == 0
        assert devices.read(path).kernels == kept
        assert devices.read(path).devices["cpu"]["float32"] == SINGLE


@pytest.mark.parametrize("cpu", [entry.cpu for entry in devices.ENTRIES[:-1]] + [machine.Cpu("GenuineIntel", 6, 143)])
def test_a_gpu_alone_leaves_the_products_as_they_were(cpu: machine.Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "this_cpu", lambda: cpu)
    assert calibrate.faster({"cuda": {"float32": SINGLE, "float64": DOUBLE}}) == devices.shipped(cpu).products


def test_a_pass_times_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that moves by one per look: all pieces run, and the constants follow."""
    ticks = itertools.count()
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(calibrate, "LARGE", 64)
    found = calibrate.time_all("cpu", torch.float64, seconds=0.0)
    assert set(found) == set(timings(DOUBLE))
    assert calibrate.constants(found, "cpu").call == found["a call"] == 1.0
