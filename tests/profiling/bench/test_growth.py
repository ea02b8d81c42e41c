"""The sweeps of sizes: what they time and what they plan."""

import json
from pathlib import Path

import pytest
import torch

from gramjd.cli import main
from gramjd.profiling.bench import growth, readme_figures
from gramjd.profiling.bench.__main__ import BENCHMARKS
from gramjd.profiling.environment import products_used


def test_operations_grow_as_the_formulas_say() -> None:
    small, large = (growth.measure(growth.stack(m, 16, 1))["operations"] for m in (8, 16))
    assert large == 4 * small
    assert set(growth.measure(growth.stack(4, 16, 1))["routes"]) == {"product"}


def test_losses_depend_on_their_own_sample() -> None:
    losses = growth.stack(3, 8, 5)
    assert losses().shape == (3,)
    assert torch.equal(losses(), losses())


def test_run_writes_what_the_figure_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {name: (title, sizes[:2], make) for name, (title, sizes, make) in growth.SWEEPS.items()}
    monkeypatch.setattr(growth, "SWEEPS", few)
    monkeypatch.setattr(growth, "SECONDS", 0.0)
    assert main(["growth", "--json", str(tmp_path / "growth.json")], BENCHMARKS) == 0
    assert capsys.readouterr().out.count("operations") == 6
    found = json.loads((tmp_path / "growth.json").read_text())
    assert found["products"] == products_used()
    panels = readme_figures.growth(found).axes
    assert [axes.get_xlabel() for axes in panels] == [title for title, _, _ in few.values()]
    for axes, sweep in zip(panels, found["sweeps"].values(), strict=True):
        assert list(axes.lines[0].get_ydata()) == [1e3 * point["gramian"] for point in sweep["points"]]
