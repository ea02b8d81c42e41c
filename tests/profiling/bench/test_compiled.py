"""Every case of the benchmark of compiled steps can be built; the smallest is measured whole."""

import json

import pytest
import torch

from gramjd.cli import main
from gramjd.profiling.bench import compiled, compiled_tables
from gramjd.profiling.bench.__main__ import BENCHMARKS


@pytest.mark.parametrize("name", compiled.CASES)
def test_cases_have_losses(name: str) -> None:
    torch.manual_seed(0)
    work = compiled.CASES[name]()
    losses = work.losses(work.model, *work.batch)
    assert losses.requires_grad
    assert losses.numel() > 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_smallest_case(tmp_path, capsys) -> None:
    path, threads = tmp_path / "found.json", torch.get_num_threads()
    wanted = "plain,Mean reuse eager,Mean reuse graph"
    try:
        for _ in range(2):  # results are added to those that are there
            given = ["compiled", "--cases", "tiny-32", "--contenders", wanted, "--seconds", "0.1", "--json", str(path)]
            assert main(given, commands=BENCHMARKS, program="bench") == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads(path.read_text())["threads 1, torch"]
    assert set(found["cases"]["tiny-32"]) == set(wanted.split(","))
    assert found["cases"]["tiny-32"]["plain"]["ratio"]["median"] == 1.0
    assert "products" in found["environment"]
    said = capsys.readouterr().out
    assert "Mean reuse graph" in said
    assert "| tiny-32 |" in said


def test_when_compiling_has_paid() -> None:
    def result(milliseconds: float, seconds: float, peak: int) -> dict:
        spread = {"median": milliseconds}
        return {"milliseconds": spread, "ratio": spread, "seconds_to_compile": seconds, "peak_bytes": peak}

    case = {
        "plain": result(1.0, 0.0, 10),
        "plain compiled": result(0.5, 1.0, 10),
        "Mean reuse eager": result(3.0, 0.0, 10),
        "Mean reuse compiled": result(1.0, 4.0, 15),
        "Mean backward compiled": result(1.2, 4.0, 12),
    }
    facts = {"threads": 1, "versions": {"torch": "2"}, "date": "today", "cpu": "a CPU", "system": "Linux"}
    facts |= {"products": {"gramjd": "torch", "others": "torch"}, "load": 0.5}
    said = compiled_tables.compiled_steps({"threads 1, torch": {"environment": facts, "cases": {"small": case}}})
    assert "| small | 2.00 | 1.50 | 1.20 | 4.00 | 2,000 |" in said  # over plain compiled: time, memory; seconds, steps
