"""`gramjd paper iwrm` on the digits, cut down to seconds."""

import json
import math

import pytest
import torch

from gramjd.cli import main
from gramjd.experiments import iwrm_report, studies
from gramjd.experiments.data.sets import DATA
from gramjd.experiments.protocol import Plan
from gramjd.experiments.results import Journal
from gramjd.experiments.studies import Study, advance, count, make

STUDY = Study("digits", "Mean", "sgd", 128, 1)
PLAN = Plan(low=0.1, high=0.2, fine=1, search_seeds=1, seeds=2)


def go(journal, seconds=math.inf, tick=lambda *_: None, tmp_path=None):
    return advance(journal, [(STUDY, PLAN)], root=tmp_path, seconds=seconds, tick=tick)


def test_interrupted_and_started_again_gives_the_same_runs(tmp_path):
    whole, parts = Journal(tmp_path / "whole"), Journal(tmp_path / "parts")
    assert go(whole)
    assert len(whole.runs()) == count(PLAN) == 4
    assert not go(parts, seconds=0)
    assert parts.runs() == []

    def stop_at_third(study, rate, seed):
        if len(parts.runs()) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(parts, tick=stop_at_third)
    assert len(parts.runs()) == 2
    assert go(Journal(tmp_path / "parts"))
    ours, theirs = Journal(tmp_path / "parts").runs(), whole.runs()
    for run in (*ours, *theirs):
        assert run.pop("seconds") > 0
    assert ours == theirs
    assert go(Journal(tmp_path / "parts"))  # nothing left to do
    assert len(Journal(tmp_path / "parts").runs()) == 4


@pytest.mark.parametrize("name", ["PCGrad", "GradDrop", "RGW"])
def test_a_seed_decides_about_a_random_aggregator_too(name):
    study = Study("digits", name, "adam", 256, 1)
    runs = [make(study, 0.003, seed, DATA["digits"].load(None, 0)) for seed in (0, 0, 1)]
    assert runs[0]["loss"] == runs[1]["loss"] != runs[2]["loss"]
    assert all(-1 <= run["cosine"][0] < 1 and run["loss"][1] < run["loss"][0] for run in runs)


def test_what_the_library_refuses_is_a_diverged_run_with_its_reason():
    data = DATA["digits"].load(None, 0)
    huge = type(data)(data.train_images * 1e20, data.train_labels, data.test_images, data.test_labels)
    run = make(STUDY, 0.1, 0, huge)
    assert run["diverged"]
    assert run.get("area", math.inf) in (None, math.inf)


def test_command(capsys, tmp_path):
    threads = torch.get_num_threads()
    words = ["paper", "iwrm", "--weightings", "mean,upgrad", "--batch", "64", "--epochs", "1"]
    words += ["--rates-from", "0.1", "--rates-to", "0.2", "--fine", "0", "--search-seeds", "1", "--seeds", "2"]
    words += ["--journal", str(tmp_path / "j.jsonl"), "--out", str(tmp_path), "--rounds", "3"]
    assert main([*words, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert torch.get_num_threads() == threads
    assert [entry["weighting"] for entry in results["studies"]] == ["Mean", "UPGrad"]
    for entry in results["studies"]:
        best = entry["best"]
        assert (entry["runs"], best["seeds"], len(best["loss"])) == (3, [0, 1], 2)
        assert best["loss"][0][0] == pytest.approx(math.log(10), rel=0.05)
        assert best["cosine"][0][0] == pytest.approx(1) if entry["weighting"] == "Mean" else best["cosine"][0][0] < 1
        assert entry["over_sgd"] == 1 if entry["weighting"] == "Mean" else entry["over_sgd"] > 0
        assert best["equal_time"][0] >= min(mean for mean, _ in best["loss"])
    assert (tmp_path / "iwrm-digits-sgd-64.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--budget", "0"]) == 0  # a report on what is there
    text = capsys.readouterr().out
    assert "6 runs in" in text
    assert "UPGrad      sgd, 64" in text


def test_command_refuses(capsys, tmp_path):
    journal = ["--journal", str(tmp_path / "j")]
    assert main(["paper", "iwrm", "--budget", "0", *journal]) == 1
    assert "holds no run" in capsys.readouterr().err
    assert main(["paper", "iwrm", "--weightings", "nosuch", *journal]) == 1
    assert "got nosuch" in capsys.readouterr().err
    assert main(["paper", "iwrm", "--seeds", "1", "--search-seeds", "2", *journal]) == 1
    assert main(["paper", "iwrm", "--data", "svhn", "--root", str(tmp_path), *journal]) == 1
    assert "get the files from" in capsys.readouterr().err


def line(rate, seed, area, weighting="Mean"):
    fields = {"data": "digits", "weighting": weighting, "optimizer": "sgd", "batch": 32, "epochs": 1}
    diverged = area is None
    curves = {"loss": [2.0], "cosine": []} if diverged else {"loss": [2.0, area], "cosine": [None]}
    return (
        fields
        | curves
        | {"rate": rate, "seed": seed, "area": area, "diverged": diverged, "accuracy": 0.5, "seconds": 1}
    )


def test_summary_by_hand():
    runs = [line(0.1, 0, 1.0), line(0.2, 0, 0.5), line(0.4, 0, None), line(0.2, 1, 0.7)]
    entry = iwrm_report.summarise(runs)[0]
    assert entry["rates"] == {"0.1": 1.0, "0.2": 0.5, "0.4": None}
    assert entry["best"]["rate"] == 0.2
    assert entry["best"]["area"] == pytest.approx([0.6, 0.1])
    assert entry["best"]["loss"][1] == pytest.approx([0.6, 0.1])
    assert entry["best"]["cosine"] == [[None, None]]
    assert iwrm_report.summarise([line(0.1, 0, None)])[0]["best"] is None
    assert "none converged" in iwrm_report.table(iwrm_report.summarise([line(0.1, 0, None)]))


def test_the_loss_at_equal_time_is_that_of_fewer_steps():
    runs = [line(0.2, seed, 0.5, "UPGrad") for seed in (0, 1)]
    entry = iwrm_report.summarise(runs, lambda data, batch: {"UPGrad": 2.0} if (data, batch) == ("digits", 32) else {})[
        0
    ]
    assert entry["over_sgd"] == 2
    assert entry["best"]["equal_time"] == [1.25, 0.0]  # half way from 2 to 0.5
    assert iwrm_report.cells(entry)[-2:] == ["2.00", "1.250 ± 0.000"]
    unknown = iwrm_report.summarise(runs)[0]
    assert iwrm_report.cells(unknown)[-2:] == ["-", "-"]


def test_areas_of_one_study_only():
    runs = [line(0.1, 0, 1.0), line(0.1, 0, 9.0, "MGDA"), line(0.1, 1, None)]
    assert studies.areas(runs, Study("digits", "Mean", "sgd", 32, 1)) == {0.1: {0: 1.0, 1: math.inf}}
