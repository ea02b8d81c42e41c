"""The toy problems: closed forms, who may increase an objective, who stalls."""

import json
import math

import pytest
import torch

from gramjd.aggregation import MGDA
from gramjd.cli import main
from gramjd.experiments import trajectories
from gramjd.experiments.aggregators import TABLE
from gramjd.experiments.toys import CQF, EWQ, TOYS, path

# The paper names the first four. With two objectives PCGrad is twice UPGrad, and IMTL-G gives both the same gain.
NEVER_CONFLICTS = {"MGDA", "DualProj", "Nash-MTL", "UPGrad", "PCGrad", "IMTL-G"}
STALLS = {"MGDA", "Aligned-MTL", "IMTL-G"}


def paths(toy, name):
    entry = TABLE[name]
    return [path(toy, entry.make(0).aggregate, toy.rate * entry.toy_rate, start) for start in toy.starts]


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_jacobian_is_the_derivative_of_the_objectives(toy):
    x = torch.tensor([0.7, -1.3], dtype=torch.float64)
    torch.testing.assert_close(toy.jacobian(x), torch.autograd.functional.jacobian(toy.objectives, x))


def test_cqf_is_the_papers_formula():
    angle, x = math.pi / 16, torch.tensor([0.3, 2.0], dtype=torch.float64)
    U = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    first, second = U.T @ (x - torch.tensor([1.0, 0.0])), U @ (x - torch.tensor([-1.0, 0.0]))
    expected = torch.stack([first[0] ** 2 + 0.01 * first[1] ** 2, 3 * second[0] ** 2 + 0.01 * second[1] ** 2])
    torch.testing.assert_close(CQF.objectives(x), expected)


def test_mean_on_ewq_in_closed_form():
    # Each step of the mean gradient x takes 1 - rate of each coordinate.
    for start, points in zip(EWQ.starts, paths(EWQ, "Mean"), strict=True):
        steps = torch.arange(51, dtype=torch.float64)[:, None]
        torch.testing.assert_close(points, torch.tensor(start, dtype=torch.float64) * 0.925**steps)


def test_mgda_on_ewq_by_hand():
    # Orthogonal gradients 2x, 2y: the shortest convex combination weights each with the other's squared length.
    x, y = points = path(EWQ, MGDA().aggregate, 0.1, (3.0, -2.0))[0].tolist()
    expected = [x - 0.1 * 2 * x * y**2 / (x**2 + y**2), y - 0.1 * 2 * y * x**2 / (x**2 + y**2)]
    assert path(EWQ, MGDA().aggregate, 0.1, tuple(points))[1].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", TABLE)
def test_who_may_increase_an_objective_on_cqf(name):
    short = CQF.__class__(**{**vars(CQF), "steps": 60})
    least = min(trajectories.least_gain(short, name, points, 0) for points in paths(short, name))
    if name in NEVER_CONFLICTS:
        assert least > -1e-12
    else:
        assert least < -0.01


@pytest.mark.parametrize("name", ["MGDA", "DualProj", "UPGrad"])
def test_small_steps_increase_nothing(name):
    # At the paper's rate a non-conflicting update can still raise an objective, by the curvature: a tenth of the rate
    # leaves about a hundredth of that, at other points of almost the same path.
    rises = {}
    for scale, steps in ((1.0, 40), (0.1, 400)):
        toy = CQF.__class__(**{**vars(CQF), "rate": CQF.rate * scale, "steps": steps, "starts": ((-1.0, 7.0),)})
        values = toy.objectives(paths(toy, name)[0])
        rises[scale] = max(0.0, float((values[1:] - values[:-1]).max()))
    assert rises[0.1] <= rises[1.0] / 50 + 1e-15


@pytest.mark.parametrize("name", TABLE)
def test_who_stalls_on_ewq(name):
    assert any(trajectories.stalled(EWQ, points) for points in paths(EWQ, name)) == (name in STALLS)


def test_command(capsys, tmp_path):
    assert main(["paper", "trajectories", "--weightings", "mean,imtl-g", "--json", "--out", str(tmp_path)]) == 0
    results = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "trajectories.json").read_text()) == results
    mean, imtl = (results["toys"]["ewq"][name] for name in ("Mean", "IMTL-G"))
    assert mean["ends"][0] == pytest.approx([3 * 0.925**50, -2 * 0.925**50], rel=1e-5)
    assert (mean["stalled"], mean["rate"], imtl["rate"]) == ([], 0.075, 0.15)
    assert [3.0, -2.0] in imtl["stalled"]
    assert results["toys"]["cqf"]["Mean"]["largest_increase"] > 0.1
    assert {p.name for p in tmp_path.glob("*.png")} == {f"{k}-{w}.png" for k in TOYS for w in ("paths", "objectives")}
