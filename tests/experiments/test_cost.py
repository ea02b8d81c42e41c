"""`gramjd paper cost`: all ways fill the same `.grad`; the tables hold what was measured."""

import json

import pytest
import torch

from gramjd.cli import main
from gramjd.experiments.aggregators import TABLE
from gramjd.experiments.cost import epoch_costs, task
from gramjd.experiments.networks import build
from gramjd.experiments.steps import SGD, WAYS


def gradient(fill, on):
    model = build(on.network, seed=0)
    fill(model, on)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", TABLE)
def test_all_ways_agree(name):
    on = task("digits", 6, "cpu")
    # Each with an aggregator of its own, made from the same seed. GradDrop's draws follow the order of the parameters,
    # which gram_backward meets in the order of the graph.
    ways = [way for way in WAYS if (way, name) != ("gramjd", "GradDrop")]
    found = [gradient(WAYS[way](name), on) for way in ways]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-4 * float(found[0].abs().max()))


def test_mean_is_sgd():
    on = task("digits", 6, "cpu")
    torch.testing.assert_close(gradient(WAYS["gramjd"]("Mean"), on), gradient(SGD, on))


def test_compare():
    on = task("digits", 8, "cpu")
    found = epoch_costs(on, {"SGD": SGD, "jacobian: Mean": WAYS["jacobian"]("Mean")}, rounds=5)
    assert found["SGD"]["over_sgd"]["median"] == 1
    assert found["SGD"]["rounds"] == 5
    # 128 steps an epoch, each of which takes eight backward passes instead of one.
    assert found["jacobian: Mean"]["seconds_per_epoch"]["median"] > found["SGD"]["seconds_per_epoch"]["median"] > 0
    parameters = sum(p.numel() for p in on.network().parameters())
    assert found["jacobian: Mean"]["peak_bytes"] > 8 * 4 * parameters > found["SGD"]["peak_bytes"]


@pytest.mark.slow
def test_command(capsys, tmp_path):
    words = ["paper", "cost", "--quick", "--weightings", "upgrad", "--rounds", "5", "--out", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert set(results["sets"]["digits"]) == {"SGD", "jacobian: UPGrad", "gramjd: UPGrad"}
    assert set(results["sizes"]) == {"32", "64"}
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert main(["paper", "cost", "--sets", "nosuch"]) == 1
    assert "got sets nosuch" in capsys.readouterr().err
