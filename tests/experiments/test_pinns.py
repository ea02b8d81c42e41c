"""Differential equations: the stated solutions solve them, runs are found again, and the command reports."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gramjd import arguments
from gramjd.cli import main
from gramjd.errors import InputError
from gramjd.experiments import pinn_problems, pinn_report, pinn_tables, pinn_training, pinns
from gramjd.experiments.pinn_problems import PROBLEMS, VISCOSITY, burgers_solution
from gramjd.experiments.pinn_training import METHODS, SEARCH_SEED


class Exact(nn.Module):
    """The solution in the place of the network."""

    def __init__(self, solution):
        super().__init__()
        self.solution = solution

    def forward(self, x):
        return self.solution(x)[:, None]


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "burgers"])
def test_the_solution_has_no_residuals(name, monkeypatch):
    monkeypatch.setattr(pinn_problems, "network", lambda *_: Exact(PROBLEMS[name].solution))
    task = PROBLEMS[name].task(0)
    if task.unknown is not None:
        task.unknown[0].data.fill_(task.unknown[1])
    blocks = task.residuals()
    assert set(blocks) == set(task.weights)
    limit = {"data": 1.3 * pinn_problems.NOISE}
    for block, values in blocks.items():
        assert values.norm() < limit.get(block, 1e-9), block
    assert PROBLEMS[name].error(task.model) == 0


def test_burgers_solution_by_differences():
    h, (x, t) = 1e-4, torch.rand(2, 50, dtype=torch.float64)
    x, t = 1.9 * x - 0.95, 0.05 + 0.9 * t

    def u(dx=0.0, dt=0.0):
        return burgers_solution(torch.stack([x + dx, t + dt], 1))

    slope, bend = (u(h) - u(-h)) / (2 * h), (u(h) - 2 * u() + u(-h)) / h**2
    residual = (u(0, h) - u(0, -h)) / (2 * h) + u() * slope - VISCOSITY * bend
    assert residual.abs().max() < 1e-3 * bend.abs().max() * VISCOSITY
    start = burgers_solution(torch.stack([x, 0 * t], 1))
    assert (start + (math.pi * x).sin()).abs().max() < 1e-12
    assert (
        burgers_solution(torch.tensor([[-1.0, 0.4], [1.0, 0.7], [0.0, 0.9]], dtype=torch.float64)).abs().max() < 1e-12
    )


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_seed_gives_the_same_task_to_every_method(name):
    state = torch.get_rng_state()
    one, other, third = (PROBLEMS[name].task(seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert one.loss() == other.loss()
    assert one.loss() != third.loss()


@pytest.fixture
def clock(monkeypatch):
    """A clock by which every step takes a hundredth of a second."""
    ticks = itertools.count()
    monkeypatch.setattr(pinn_training, "time", SimpleNamespace(process_time=lambda: next(ticks) / 100))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_the_loss(method):
    run = pinn_training.train("poisson-1d", method, 0, 0, 0.195)
    assert run["failed"] is None
    assert run["steps"] == 20
    assert run["losses"][-1] < run["losses"][0]
    assert list(run["times"]) == sorted(run["times"])
    assert len(run["times"]) == len(run["errors"]) == len(run["losses"])


def test_a_run_that_fails_is_a_result(monkeypatch):
    def make(task):
        def step(over):
            raise ZeroDivisionError("no")

        return step

    monkeypatch.setitem(METHODS, "lm", pinn_training.Method("LM", make))
    run = pinn_training.train("poisson-1d", "lm", 0, 0, 1.0)
    assert run["failed"] == "ZeroDivisionError: no"
    assert run["steps"] == 0


def fake(key):
    """A run whose error is least for the second option, and grows with the seed."""
    error = 0.1 * (1 + abs(key["choice"] - 1)) + 0.01 * key["seed"]
    curve = {"times": [0.0, 1.0], "errors": [1.0, error], "losses": [1.0, error]}
    return {**key, **curve, "steps": 5, "error": error, "unknown": None, "failed": None}


def test_options_are_searched_first_and_the_best_goes_on():
    runs = []
    while (key := next(pinns.wanted(runs, ["wave"], ["adam", "lm"], 2, None), None)) is not None:
        runs.append(fake(key))
    assert [(r["method"], r["choice"], r["seed"]) for r in runs] == [
        *(("adam", choice, SEARCH_SEED) for choice in range(3)),
        *(("adam", 1, seed) for seed in (0, 1)),
        *(("lm", 0, seed) for seed in (0, 1)),
    ]
    assert {r["seconds"] for r in runs} == {PROBLEMS["wave"].seconds}
    assert len(list(pinns.wanted(runs, ["wave"], ["adam"], 4, None))) == 2


@pytest.mark.usefixtures("clock")
def test_command(tmp_path, capsys):
    journal = tmp_path / "runs.jsonl"
    words = ["demo", "pinns", "--problems", "poisson-1d,inverse", "--methods", "lm", "--seeds", "2"]
    words += ["--seconds", "0.05", "--journal", str(journal), "--out", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["entries"]
    assert [entry["problem"] for entry in entries] == ["poisson-1d", "inverse"]
    assert [entry["seeds"] for entry in entries] == [[0, 1], [0, 1]]
    assert entries[0]["unknown"] is None
    assert entries[1]["unknown"] > 0
    for name in ("errors", "poisson-1d", "inverse"):
        assert (tmp_path / f"pinns-{name}.png").read_bytes().startswith(b"\x89PNG")
    before = journal.read_bytes()
    assert main([*words, "--no-plots"]) == 0
    assert journal.read_bytes() == before  # nothing was missing
    assert "Poisson 1D, 0.05 s    LM" in capsys.readouterr().out


def test_a_budget_of_nothing_makes_no_run(tmp_path, capsys):
    assert main(["demo", "pinns", "--budget", "0", "--journal", str(tmp_path / "no.jsonl")]) == 1
    assert "holds no run" in capsys.readouterr().err


def test_wrong_names(tmp_path, capsys):
    assert main(["demo", "pinns", "--methods", "newton", "--journal", str(tmp_path / "no.jsonl")]) == 1
    assert "'newton' is no method; expected some of: adam, lbfgs" in capsys.readouterr().err
    with pytest.raises(InputError, match="at most 100"):
        pinns.run(type("Args", (), {"seeds": 101})())


def test_options_name_all_there_is():
    assert tuple(PROBLEMS) == arguments.PINN_PROBLEMS
    assert tuple(METHODS) == arguments.PINN_METHODS == tuple(pinn_report.COLOURS)


def test_page_is_up_to_date():
    assert pinn_tables.main(["--check"]) == 0, "run python -m gramjd.experiments.pinn_tables and commit docs/pinns.md"


def test_check_fails_when_a_result_changes(tmp_path, capsys):
    journal = tmp_path / pinn_tables.RESULTS / "pinns.jsonl"
    for path in (pinn_tables.RESULTS / "pinns.jsonl", pinn_tables.PAGE):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text((pinn_tables.ROOT / path).read_text())
    assert pinn_tables.main(["--check"], tmp_path) == 0
    lines = journal.read_text().splitlines()
    run = json.loads(lines[-1])
    journal.write_text("\n".join([*lines[:-1], json.dumps({**run, "error": 99.0})]) + "\n")
    assert pinn_tables.main(["--check"], tmp_path) == 1
    assert "does not match" in capsys.readouterr().err
    assert pinn_tables.main([], tmp_path) == 0
    assert "9.9e+01" in (tmp_path / pinn_tables.PAGE).read_text()
