"""Every case of the benchmark of compiled steps can be built; the smallest is measured whole."""

import json

import pytest
import torch

from gramjd.cli import main
from gramjd.profiling.bench import compiled
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
    found = json.loads(path.read_text())["threads 1"]
    assert set(found["cases"]["tiny-32"]) == set(wanted.split(","))
    assert found["cases"]["tiny-32"]["plain"]["ratio"]["median"] == 1.0
    assert "products" in found["environment"]
    assert "Mean reuse graph" in capsys.readouterr().out
