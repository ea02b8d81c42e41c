"""`gramjd demo iwrm`, cut down to seconds, through the command line in this process."""

import json
import math
from itertools import pairwise

import pytest
import torch
from matplotlib.text import Annotation

import gramjd
from gramjd.cli import main
from gramjd.experiments.aggregators import BY_CLASS
from gramjd.experiments.data.sets import load_digits
from gramjd.experiments.demo import best_runs
from gramjd.experiments.demo_plots import draw
from gramjd.experiments.demo_report import conclusion
from gramjd.experiments.networks import DEMO, build
from gramjd.experiments.steps import StepCost
from gramjd.experiments.training import Method, Run, train
from gramjd.profiling.timing import Spread

SHORT = ["demo", "iwrm", "--batch", "32", "--epochs", "2", "--rates", "0.05,0.1", "--rounds", "5"]


def mlp(seed):
    return build(DEMO["mlp"], seed)


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
        (network, method, rate) for network in DEMO for method in ("SGD", "UPGrad") for rate in (0.05, 0.1)
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
    for network in DEMO:  # same weights: every run of a network starts from the same loss
        assert len({run["loss"][0] for run in results["runs"] if run["network"] == network}) == 1
    for cost in results["costs"]:
        spread = cost["milliseconds"]
        assert 0 < spread["low"] <= spread["median"] <= spread["high"]
        assert cost["peak_bytes"] >= 4 * sum(p.numel() for p in build(DEMO[cost["network"]], 0).parameters())
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
    few = ["demo", "iwrm", "--batch", "32", "--epochs", "1", "--rounds", "5", "--out", str(tmp_path)]
    assert main([*few, "--rates", "0.05,1000"]) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.startswith(("cnn", "mlp")) and "diverged" in line]) == 4
    named = "cnn SGD at 1000; cnn UPGrad at 1000; mlp SGD at 1000; mlp UPGrad at 1000"
    assert f"Runs that diverged: {named}." in out
    assert main([*few, "--rates", "1000", "--json"]) == 1
    results = json.loads(capsys.readouterr().out)
    assert all(run["diverged"] for run in results["best"])
    assert "UPGrad and SGD both diverged at every rate on the CNN and on the MLP" in results["conclusion"]


def test_batch_and_ridge_are_used(capsys, tmp_path):
    results = run_json(capsys, tmp_path, "--batch", "512", "--ridge", "1e-4", "--rates", "0.1", "--epochs", "1")
    assert (results["settings"]["batch"], results["settings"]["aggregator"]) == (512, "UPGrad, ridge 0.0001")
    exact = run_json(capsys, tmp_path, "--batch", "512", "--rates", "0.1", "--epochs", "1")
    ridged, unridged = (next(r for r in found["runs"] if r["method"] != "SGD") for found in (results, exact))
    assert ridged["loss"][0] == unridged["loss"][0]
    assert ridged["loss"][-1] != unridged["loss"][-1]
    assert results["conclusion"].startswith("With 512 losses per step")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ridge", "1e-4", "--aggregator", "MGDA"], "got --ridge for MGDA; it is an option of UPGrad"),
        (["--batch", "1025"], "got --batch 1025, and there are 1024 training images"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, capsys, tmp_path):
    assert main(["demo", "iwrm", "--out", str(tmp_path), *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", BY_CLASS)
def test_every_aggregator_takes_a_step(name):
    runs = [
        train(
            "mlp",
            mlp(0),
            Method(name, BY_CLASS[name].make(0)),
            1e-3,
            load_digits(0),
            epochs=1,
            seed=0,
            tick=lambda _: None,
            batch=512,
        )
        for _ in range(2)
    ]
    assert not runs[0].diverged
    assert runs[0].loss[-1] != runs[0].loss[0]
    assert runs[0] == runs[1]  # those that draw are made anew from the seed


def outcome(network, method, last, accuracy=0.9, **more):
    return Run(network, method, 0.1, loss=[2.0, last], accuracy=accuracy, **more)


def costs(**over):
    """Of "Ours" on each network; of "SGD" one."""
    return {
        (network, method): StepCost(Spread(1.0, 1.0, 1.0), Spread(ratio, ratio, ratio), 5, 1)
        for network, ours in over.items()
        for method, ratio in (("SGD", 1.0), ("Ours", ours))
    }


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (outcome("net", "Ours", 0.1, 0.97), "Ours was ahead of SGD on the NET (training loss 0.1 against 0.5"),
        (outcome("net", "Ours", 0.9), "Ours was behind SGD on the NET (training loss 0.9 against 0.5"),
        (outcome("net", "Ours", 0.51), "Ours was level with SGD on the NET (training loss 0.51 against 0.5"),
        (outcome("net", "Ours", 0.1, diverged=True), "Ours was behind SGD, as it diverged at every rate, on the NET"),
    ],
)
def test_the_conclusion_follows_the_numbers(ours, said):
    text = conclusion([outcome("net", "SGD", 0.5), ours], costs(net=3.25), 64)
    assert text.startswith(f"With 64 losses per step and each method at its best rate, {said}")
    assert text.endswith("one of its steps took as long as 3.2 of SGD's on the NET.")


def test_the_conclusion_keeps_networks_apart():
    best = [outcome("a", "SGD", 0.5), outcome("a", "Ours", 0.1), outcome("b", "SGD", 0.5), outcome("b", "Ours", 0.9)]
    text = conclusion(best, costs(a=2, b=4), 8)
    assert "was ahead of SGD on the A (" in text
    assert ", and was behind SGD on the B (" in text
    assert text.endswith("as long as 2.0 of SGD's on the A and 4.0 of SGD's on the B.")


def test_labels_stand_at_the_ends_of_their_curves():
    runs = [Run("n", "SGD", rate, loss=[2.3, last]) for rate, last in ((0.1, 0.5), (0.2, 0.49), (0.4, 0.05))]
    runs += [Run("n", "Ours", 0.1, loss=[2.3, 0.2]), Run("n", "Ours", 1.6, loss=[2.3], diverged=True)]
    upper, _ = draw(runs, [runs[2], runs[3]], 256).axes
    labels = [text for text in upper.texts if isinstance(text, Annotation)]
    ends = {(text.get_text(), text.xy) for text in labels}
    assert ends == {(f"{run.rate:g}", (1, run.loss[-1])) for run in runs if not run.diverged}
    low, high = (math.log10(limit) for limit in upper.get_ylim())
    heights = sorted(text.get_position()[1] for text in labels)
    assert all(b - a >= 0.0449 for a, b in pairwise(heights))
    for text in labels:  # none is further from its end than crowding explains
        assert abs(text.get_position()[1] - (math.log10(text.xy[1]) - low) / (high - low)) < 0.045
    assert [text.get_text() for text in upper.texts if text not in labels] == ["diverged: Ours at 1.6"]


def test_the_time_of_a_step_stands_beside_the_curves():
    runs = [Run("n", "SGD", 0.1, loss=[2.3, 0.5], accuracy=0.9), Run("n", "Ours", 0.1, loss=[2.3, 0.2], accuracy=0.95)]
    upper, _ = draw(runs, runs, 256, {("n", "SGD"): 1.5, ("n", "Ours"): 4.0}).axes
    said = [text.get_text() for text in upper.get_legend().get_texts()]
    assert said == [
        "SGD, rate 0.1: held out 90.0 %, 1.5 ms per step",
        "Ours, rate 0.1: held out 95.0 %, 4 ms per step",
    ]


@pytest.mark.parametrize("epochs", [1, 2])
def test_one_epoch_is_seen_as_points(epochs):
    """A line through one point shows nothing."""
    options = {"cosine": [0.5] * epochs, "conflicts": [0.2] * epochs, "accuracy": 0.9}
    runs = [Run("n", method, 0.1, loss=[2.3, *[0.5] * epochs], **options) for method in ("SGD", "Ours")]
    _, lower = draw(runs, runs, 256).axes
    assert {line.get_marker() for line in lower.lines} == {"o" if epochs == 1 else "None"}


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
