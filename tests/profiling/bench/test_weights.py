"""The benchmark of weightings: Gramians as described, errors by hand, and refusals that are said."""

import json
import math
import sys

import pytest
import torch

from gramjd.cli import main
from gramjd.profiling.bench import gramians, singular, weightings, weights
from gramjd.profiling.bench.__main__ import BENCHMARKS
from gramjd.profiling.bench.weightings import WEIGHTINGS, InexactError, exact_weights
from gramjd.profiling.bench.weights import measure, update_error
from gramjd.profiling.methods import RefusalError

TWO = torch.tensor([[1.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)  # of the gradients (1, 0) and (-1, 1)


@pytest.fixture
def quick(monkeypatch):
    """Two optimiser steps a network instead of hundreds."""
    short = {name: network._replace(steps=2) for name, network in gramians.NETWORKS.items()}
    monkeypatch.setattr(gramians, "NETWORKS", short)
    monkeypatch.setattr(weights, "_REPEATED", 0.0)


def test_network_gramians(quick):
    large, small = gramians.network_gramians(5), gramians.network_gramians(3)
    assert list(large) == [f"{name}, {state}" for name in gramians.NETWORKS for state in ("init", "trained")]
    for name, G in large.items():
        assert G.shape == (5, 5)
        assert G.dtype == torch.float32
        assert torch.linalg.eigvalsh(G.double())[0] > -1e-6 * G.trace()
        torch.testing.assert_close(G[:3, :3], small[name], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(large["MLP, init"], large["MLP, trained"])


def test_drawn_gramians():
    D = gramians.drawn("low rank", 12)
    assert int(torch.linalg.matrix_rank(D)) == 12 // 4 + 2
    assert float(gramians.drawn("conflicting", 8).sum()) < 0.1 * float(gramians.drawn("random", 8).sum())
    for family in gramians.FAMILIES:
        assert torch.equal(gramians.drawn(family, 4), gramians.drawn(family, 4))


def test_the_error_is_that_of_the_update():
    exact = torch.tensor([1.0, 0.75], dtype=torch.float64)
    assert update_error(TWO, exact, exact) == 0.0
    # J^T w* = (0.25, 0.75); w = (0, 0.75) gives (-0.75, 0.75).
    off = update_error(TWO, torch.tensor([0.0, 0.75]), exact)
    assert off == pytest.approx(1 / math.hypot(0.25, 0.75), rel=1e-3)
    # Another solution of a singular Gramian is no error, and nothing is relative to an update of zero.
    twice = torch.ones(2, 2, dtype=torch.float64)
    assert update_error(twice, torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5], dtype=torch.float64)) == 0.0
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert update_error(opposite, exact, torch.tensor([0.5, 0.5], dtype=torch.float64)) is None


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("family", gramians.FAMILIES)
def test_optimality(name, family):
    G, weighting = gramians.drawn(family, 9), WEIGHTINGS[name]
    w, residual = exact_weights(weighting, G)
    assert residual <= 1e-9
    assert w.shape == (9,)
    right = weighting.exact(G)
    for wrong in (right * (1 + 1e-4), right * 0.9, torch.roll(right, 1, -1)):
        with pytest.raises(InexactError, match="optimality is missed"):
            exact_weights(weighting._replace(exact=lambda _, wrong=wrong: wrong), G)


def test_torchjd_takes_its_turn(quick):
    pytest.importorskip("torchjd")
    pytest.importorskip("quadprog")
    found = measure(WEIGHTINGS["UPGrad"], gramians.drawn("random", 6), seconds=0.01)
    assert set(found) == {"exact", "tol=1e-2", "torchjd", "eigh"}
    assert found["exact"]["error"] < 1e-9
    assert found["tol=1e-2"]["error"] < 1e-3
    assert 1e-6 < found["torchjd"]["error"] < 0.05
    assert all(outcome["ms"] > 0 and outcome["rounds"] >= 1 for outcome in found.values())
    assert "torchjd" not in measure(WEIGHTINGS["UPGrad"], TWO, seconds=0.0, theirs=False)


def test_refusals_are_reported(quick, monkeypatch):
    def refuse(G):
        raise RefusalError("not today")

    found = measure(WEIGHTINGS["MGDA"]._replace(theirs=refuse), TWO, seconds=0.0)
    assert found["torchjd"] == {"refused": "not today"}
    assert found["exact"]["ms"] > 0
    failed = measure(WEIGHTINGS["MGDA"]._replace(theirs=lambda G: lambda G: 1 // 0 * G), TWO, seconds=0.0)
    assert failed["torchjd"]["refused"].startswith("ZeroDivisionError")
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(RefusalError, match=r"gramjd\[bench\]"):
        weightings.WEIGHTINGS["UPGrad"].theirs(TWO)


def test_report(quick, tmp_path, capsys):
    path = tmp_path / "weights.json"
    sizes = ["--sizes", "4", "--others-sizes", "3", "--large", "6", "5", "--singular-sizes", "7"]
    assert main(["weights", *sizes, "--seconds", "0", "--json", str(path)], BENCHMARKS) == 0
    report = json.loads(path.read_text())
    assert report["environment"]["threads"] == 1
    assert set(report["products"]) == {"gramjd", "others"}
    rows = report["results"]
    gradients = len(gramians.FAMILIES) + 2 * len(gramians.NETWORKS)
    assert [row["m"] for row in rows] == [4] * gradients + [3] * 3 * gradients + [7] * len(singular.SINGULAR) + [
        m for m in (6, 5) for _ in weights.LARGE
    ]
    assert rows[-1]["contenders"]["exact"]["peak_bytes"] >= 8 * 5 * 5
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


RANKS = {"smooth kernel": 40, "polynomials": 30, "few dimensions": 5, "sum zero": 39, "opposed": 40, "physics": 40}


@pytest.mark.parametrize("name", singular.SINGULAR)
def test_gramians_close_to_singular(name):
    G = singular.SINGULAR[name](40)
    assert G.shape == (40, 40)
    assert torch.equal(G, singular.SINGULAR[name](40))
    lengths = G.diagonal().sqrt()
    values = torch.linalg.eigvalsh(G / torch.outer(lengths, lengths))
    assert -1e-13 < values[0] < 1e-6 * values[-1]
    found = singular.measure(name, 40, seconds=0.0)
    assert found["rank"] <= RANKS[name]
    assert found["contenders"]["exact"]["roundings"] <= 8
    assert set(found["contenders"]) == {"exact", "random"}


def test_weights_that_are_not_exact_are_not_timed(monkeypatch):
    monkeypatch.setattr(singular, "exact_upgrad", lambda G: torch.eye(len(G)).double())
    with pytest.raises(InexactError, match="roundings"):
        singular.measure("sum zero", 12, seconds=0.0)
