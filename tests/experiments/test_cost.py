"""`gramjd paper cost`: all ways fill the same `.grad`; the tables hold what was measured."""

import json

import pytest
import torch

from gramjd.cli import main
from gramjd.experiments.aggregators import TABLE
from gramjd.experiments.cost import beside_the_paper, epoch_costs, task
from gramjd.experiments.networks import build
from gramjd.experiments.steps import SGD, WARM, WAYS, Compiled


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


def test_beside_the_paper():
    def cost(seconds, over, peak):
        return {"seconds_per_epoch": {"median": seconds}, "over_sgd": {"median": over}, "peak_bytes": peak}

    found = {
        "SGD": cost(0.5, 1.0, 100),
        "jacobian: UPGrad": cost(10.0, 20.0, 1000),
        "gramjd: UPGrad": cost(0.8, 1.5, 150),
        "compiled: SGD": cost(0.4, 0.8, 100),
        "compiled: UPGrad": cost(0.6, 1.2, 120),
        "jacobian: MGDA": cost(9.0, 18.0, 1000),
    }
    head, *lines = beside_the_paper("cifar10", found)
    rows = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert rows["UPGrad"] == {
        **{"aggregator": "UPGrad", "s/epoch": "0.800", "jacobian: over SGD": "20.00", "gramjd: over SGD": "1.50"},
        **{"compiled: over SGD": "1.20", "over compiled SGD": "1.50", "paper: over SGD": "4.02"},
        **{"memory, jacobian": "10.00", "memory, gramjd": "1.50"},
    }
    assert (rows["SGD"]["s/epoch"], rows["SGD"]["paper: over SGD"]) == ("0.500", "1.00")
    assert (rows["MGDA"]["s/epoch"], rows["MGDA"]["jacobian: over SGD"]) == ("-", "18.00")
    assert beside_the_paper("digits", found)[1][-3] == "-"  # no figure of the paper


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # by torch.compile itself
def test_compiled_steps_are_steps():
    on = task("digits", 6, "cpu")
    for name in (None, "UPGrad"):
        model = build(on.network, seed=0)
        before = [p.detach().clone() for p in model.parameters()]
        Compiled(name).step(model, torch.optim.SGD(model.parameters(), lr=0.1), on)()
        eager = build(on.network, seed=0)
        optimizer = torch.optim.SGD(eager.parameters(), lr=0.1)
        for _ in range(WARM + 1):
            (SGD if name is None else WAYS["gramjd"](name))(eager, on)
            optimizer.step()
            optimizer.zero_grad()
        for p, q, old in zip(model.parameters(), eager.parameters(), before, strict=True):
            assert not torch.equal(p, old)
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
