"""`gramjd demo iwrm`, cut down to seconds, through the command line in this process."""

import json
import math

import pytest
import torch

import gramjd
from gramjd.cli import main
from gramjd.demos.digits import load_digits
from gramjd.demos.iwrm import best_runs
from gramjd.demos.networks import NETWORKS, build
from gramjd.demos.training import Method, Run, train

SHORT = ["demo", "iwrm", "--epochs", "2", "--rates", "0.05,0.1", "--rounds", "5"]


def mlp(seed):
    return build(NETWORKS["mlp"], seed)


def run_json(capsys, out, *options):
    assert main([*SHORT, "--json", "--out", str(out), *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_results_are_sane(capsys, tmp_path):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    results = run_json(capsys, tmp_path)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert results["settings"]["aggregator"] == "UPGrad"
    assert {(run["network"], run["method"], run["rate"]) for run in results["runs"]} == {
        (network, method, rate) for network in NETWORKS for method in ("SGD", "UPGrad") for rate in (0.05, 0.1)
    }
    for run in results["runs"]:
        assert not run["diverged"]
        assert len(run["loss"]) == 3
        assert len(run["cosine"]) == len(run["conflicts"]) == 2
        assert run["loss"][-1] < run["loss"][0] == pytest.approx(math.log(10), rel=0.1)
        assert 0.3 < run["accuracy"] <= 1
        assert all(0 < share < 1 for share in run["conflicts"])
        # UPGrad's update never opposes the mean gradient, as it opposes no single one; SGD's is the mean gradient.
        assert all(cosine == 1 if run["method"] == "SGD" else 0 < cosine < 1 for cosine in run["cosine"])
    for network in NETWORKS:  # same weights: every run of a network starts from the same loss
        assert len({run["loss"][0] for run in results["runs"] if run["network"] == network}) == 1
    for cost in results["costs"]:
        spread = cost["milliseconds"]
        assert 0 < spread["low"] <= spread["median"] <= spread["high"]
        assert cost["peak_bytes"] >= 4 * sum(p.numel() for p in build(NETWORKS[cost["network"]], 0).parameters())
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "iwrm.png").read_bytes().startswith(b"\x89PNG")


def test_mean_takes_the_steps_of_sgd(capsys, tmp_path):
    runs = run_json(capsys, tmp_path, "--aggregator", "mean")["runs"]
    for sgd, mean in zip(runs[::2], runs[1::2], strict=True):
        assert (sgd["method"], mean["method"]) == ("SGD", "Mean")
        assert mean["loss"] == pytest.approx(sgd["loss"], rel=1e-3)
        assert mean["conflicts"] == pytest.approx(sgd["conflicts"], abs=0.01)
        assert mean["cosine"] == pytest.approx([1.0, 1.0], abs=1e-6)


def test_seed_decides():
    upgrad = Method("UPGrad", gramjd.UPGrad())
    first, again, other = (
        train("mlp", mlp(seed), upgrad, 0.05, load_digits(seed), epochs=1, seed=seed, tick=lambda _: None)
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first.loss[0] != other.loss[0]


def test_table_shows_best_and_same_rate_rows(capsys, tmp_path):
    assert (
        main([*SHORT, "--epochs", "1", "--aggregator", "sum", "--rates", "0.0001,0.001", "--out", str(tmp_path)]) == 0
    )
    best, same = capsys.readouterr().out.split("Both at the same rates")
    assert [line.split()[:2] for line in best.splitlines() if line.startswith(("cnn", "mlp"))] == [
        ["cnn", "SGD"],
        ["cnn", "Sum"],
        ["mlp", "SGD"],
        ["mlp", "Sum"],
    ]
    rows = [line.split()[:3] for line in same.splitlines() if line.startswith(("cnn ", "mlp ")) and " % " in line]
    assert [row[2] for row in rows] == ["0.0001", "0.0001", "0.001", "0.001"] * 2
    for column in ("training loss", "held-out accuracy", "cosine to mean", "conflicting pairs", "ms/step", "peak MB"):
        assert column in best


def test_a_run_that_diverges_is_reported_not_hidden(capsys, tmp_path):
    assert main(["demo", "iwrm", "--epochs", "1", "--rates", "0.05,1000", "--rounds", "5", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("diverged") == 4
    fixed = ["demo", "iwrm", "--epochs", "1", "--rates", "1000", "--rounds", "5", "--json", "--out", str(tmp_path)]
    assert main(fixed) == 1
    assert all(run["diverged"] for run in json.loads(capsys.readouterr().out)["best"])


def test_split_is_a_partition():
    data = load_digits(0)
    images = torch.cat([data.train_images, data.test_images])
    assert (len(data.train_images), len(data.test_images)) == (1024, 773)
    assert len(images.flatten(1).unique(dim=0)) == 1797  # no image is in both parts
    assert data.train_images.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train_images.std().item() == pytest.approx(1, abs=1e-5)
    assert not torch.equal(load_digits(1).train_labels, data.train_labels)


def test_progress_counts_every_step():
    ticks = []
    train("mlp", mlp(0), Method("SGD"), 0.05, load_digits(0), epochs=2, seed=0, tick=ticks.append)
    assert sum(ticks) == 64
    ticks.clear()
    assert train("mlp", mlp(0), Method("SGD"), 1e6, load_digits(0), epochs=2, seed=0, tick=ticks.append).diverged
    assert sum(ticks) == 64


def test_best_is_by_area():
    runs = [Run("n", "m", rate, loss=[2.0, mid, 1.0]) for rate, mid in ((0.1, 1.5), (0.2, 1.2), (0.4, 1.4))]
    runs.append(Run("n", "m", 0.8, loss=[2.0], diverged=True))
    assert [run.rate for run in best_runs(runs)] == [0.2]
    assert runs[0].area == pytest.approx(1.5)
    assert runs[-1].area == math.inf
