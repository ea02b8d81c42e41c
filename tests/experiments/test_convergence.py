"""Theorem 1: the constants, the certificates, and the runs."""

import json
import math

import pytest
import torch

from gramjd.cli import main
from gramjd.experiments.convergence import descend
from gramjd.experiments.quadratics import draw_problem, gap


@pytest.mark.parametrize(("m", "n"), [(1, 3), (2, 2), (5, 4)])
def test_beta_is_the_least_constant(m, n):
    problem, start = draw_problem(m, n, seed=0)
    beta = problem.beta()
    stacked = problem.matrices.reshape(m * n, n)  # J(x) - J(y) as a linear map of x - y
    assert beta == pytest.approx(torch.linalg.matrix_norm(stacked, ord=2).item())
    J = torch.autograd.functional.jacobian(problem.objectives, start)
    torch.testing.assert_close(problem.jacobian(start), J)
    assert torch.linalg.eigvalsh(problem.matrices).min() > 0.049


def test_gap_brackets_the_distance_found_by_brute_force():
    problem, start = draw_problem(2, 2, seed=3)
    shares = torch.linspace(0, 1, 20001, dtype=torch.float64)
    pareto = torch.stack([problem.pareto_point(torch.stack([1 - s, s])) for s in shares[::20]])
    for x in (start, pareto[300] + 0.01, pareto[700] + torch.tensor([0.0, 1e-3], dtype=torch.float64)):
        found, distance = gap(problem, x), float((pareto - x).norm(dim=1).min())
        assert found.lower <= distance + 1e-9
        assert distance <= found.upper + 1e-4  # the brute force has steps of its own
    assert gap(problem, pareto[400]).upper < 1e-9


def test_pareto_points_are_not_dominated():
    problem, start = draw_problem(3, 4, seed=1)
    best = problem.pareto_point(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))
    others = best + torch.randn(2000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.stack([problem.objectives(x) for x in others])
    assert not bool((values <= problem.objectives(best)).all(1).any())
    assert bool((problem.objectives(start) > problem.objectives(best)).any())


@pytest.mark.parametrize(("m", "n"), [(2, 2), (4, 10), (16, 10)])
def test_upgrad_converges_with_bounded_weights(m, n):
    problem, start = draw_problem(m, n, seed=0)
    found = descend(problem, start, "UPGrad", steps=150, seed=0)
    assert found["at"][0] == 0
    assert found["at"][-1] == 150
    assert found["upper"][-1] < 1e-6 * found["upper"][0]
    assert math.isfinite(found["largest_weight"])


def test_command(capsys, tmp_path):
    words = ["paper", "convergence", "--weightings", "upgrad", "--steps", "20", "--seeds", "1", "--out", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(run["m"], run["n"]) for run in runs] == [(2, 2), (4, 10), (8, 20), (16, 10)]
    for run in runs:
        assert all(low <= high + 1e-12 for low, high in zip(run["lower"], run["upper"], strict=True))
        assert run["upper"][-1] < run["upper"][0]
    assert (tmp_path / "convergence.png").read_bytes().startswith(b"\x89PNG")
