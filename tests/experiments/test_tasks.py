"""`gramjd paper tasks`: the canvas, each kind of method, the journal, table and figure; on images made up here."""

import json
import math
import struct

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from gramjd.cli import main
from gramjd.errors import InputError
from gramjd.experiments import tables, tasks_figure, tasks_report
from gramjd.experiments.data import overlaid
from gramjd.experiments.data.files import MissingFilesError
from gramjd.experiments.data.images import Images
from gramjd.experiments.networks import build
from gramjd.experiments.results import Journal
from gramjd.experiments.tasks_methods import METHODS, SUM, TwoTasks, select
from gramjd.experiments.tasks_training import Step, Study, make, step_costs

STUDY = Study("equal", SUM, 40, 8, 2)


def write_idx(path, array):
    path.write_bytes(b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder `mnist` with bars for digits: digit k is bright in rows 2k + 4 and 2k + 5."""
    folder = tmp_path_factory.mktemp("root") / "mnist"
    folder.mkdir()
    random = np.random.default_rng(0)
    for stem, count in (("train", 60), ("t10k", 30)):
        labels = random.integers(0, 10, count, dtype=np.uint8)
        images = random.integers(0, 40, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 6, 4:24] = 200 + label
        write_idx(folder / f"{stem}-images-idx3-ubyte", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte", labels)
    return folder.parent


@pytest.fixture(scope="module")
def data(root):
    return overlaid.load(root, 0, 40)


def test_canvas_by_hand():
    first, second = torch.zeros(1, 1, 28, 28), torch.zeros(1, 1, 28, 28)
    first[0, 0, 0, 0], first[0, 0, 27, 27] = 100, 8
    second[0, 0, 0, 0], second[0, 0, 27, 27], second[0, 0, 19, 19] = 60, 40, 20
    canvas = overlaid.overlaid(first, second)
    assert canvas.shape == (1, 1, 18, 18)
    expected = torch.zeros(18, 18)
    expected[0, 0] = 100 / 4  # the first digit's corner is that of the canvas
    expected[4, 4] = 60 / 4  # the second's lies 8 pixels further, 4 after halving
    expected[17, 17] = 40 / 4
    expected[13, 13] = 20 / 4  # both write to pixel (27, 27): the brighter of 8 and 20 stays
    assert torch.equal(canvas[0, 0], expected)


def test_pairs_have_both_labels_and_each_digit_twice():
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 28, 28) + 1
    labels, chosen = torch.tensor([7, 1, 2, 3, 9]), torch.tensor([4, 0, 2])
    found, both = overlaid.pairs(images, labels, chosen)
    assert both.tolist() == [[9, 7], [7, 2], [2, 9]]
    assert found[:, 0, 0, 0].tolist() == [5, 1, 3]  # where the upper left digit is alone
    assert found[:, 0, -1, -1].tolist() == [1, 3, 5]
    assert found[:, 0, 8, 8].tolist() == [5, 3, 5]  # the brighter of the two
    assert found[:, 0, 0, -1].tolist() == [0, 0, 0]


def test_load_draws_from_both_parts_by_seed(root):
    data = overlaid.load(root, 0, 40)
    assert (data.train_images.shape, data.train_labels.shape) == ((40, 1, 18, 18), (40, 2))
    assert (data.test_images.shape, data.test_labels.shape) == ((30, 1, 18, 18), (30, 2))
    assert data.train_images.mean().abs() < 1e-5
    assert torch.equal(overlaid.load(root, 0, 40).train_images, data.train_images)
    assert not torch.equal(overlaid.load(root, 1, 40).train_labels, data.train_labels)
    for column in (0, 1):  # the bar of a digit tells its label: row 2k + 4 of the image, k + 2 after halving
        rows = data.train_labels[:, column] + 2 + 4 * column
        part = slice(2, 4) if column == 0 else slice(14, 16)  # columns that this digit has for itself
        profile = data.train_images[:, 0, :, part].mean(2)
        assert torch.equal(profile.argmax(1), rows)


def test_load_refuses(root, tmp_path):
    with pytest.raises(MissingFilesError, match="train-images-idx3-ubyte"):
        overlaid.load(tmp_path, 0, 4)
    with pytest.raises(InputError, match="got 60 images"):
        overlaid.load(root, 0, 61)


@pytest.mark.parametrize("form", ["equal", "unequal"])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_of_every_method(name, form, data):
    runs = [make(Study(form, name, 40, 8, 8), 0.01, 0, data) for _ in range(2)]
    assert {**runs[0], "seconds": 0} == {**runs[1], "seconds": 0}  # the seed decides all
    run = runs[0]
    loss = torch.tensor(run["loss"])
    assert not run["diverged"]
    assert loss.shape == (8, 2)
    assert run["area"] == pytest.approx(float(loss.mean()))
    assert torch.tensor(run["accuracy"]).shape == (9, 2)
    # The least of the epochs: the geometric mean is steep where one loss is near zero, and jumps.
    assert (loss.amin(0) < 0.85 * loss[0]).all(), loss
    has_gramian = name not in list(METHODS)[:8] and name != "GradDrop"
    assert (run["conflicts"] is not None) == has_gramian


def gradients(name, form, data, seed=0):
    """Per parameter the gradient of one step's losses, and the two plain gradients of the tasks in float64."""
    step = Step(Study(form, name, 40, 8, 1), 0.0, seed)
    images, labels = data.train_images[:8], data.train_labels[:8]
    _, conflict = step(images, labels)
    model = build(TwoTasks, seed).double()
    losses = [cross_entropy(s, t) for s, t in zip(model(images.double()), labels.T, strict=True)]
    plain = [torch.autograd.grad(x, list(model.parameters()), retain_graph=True, allow_unused=True) for x in losses]
    names = [key for key, _ in model.named_parameters()]
    found = {key: p.grad for key, p in step.model.named_parameters()}
    return found, {key: pair for key, *pair in zip(names, *plain, strict=True)}, conflict


def test_heads_get_their_own_gradient_and_the_trunk_a_combination(data):
    for name, weights in ((SUM, (1, 10)), ("Mean", (0.5, 5))):
        found, plain, _ = gradients(name, "unequal", data)
        for key, (one, two) in plain.items():
            if key.startswith("trunk"):
                expected = weights[0] * one + weights[1] * two
            else:
                expected = one if key.startswith("heads.0") else 10 * two
            torch.testing.assert_close(found[key].double(), expected, rtol=1e-4, atol=1e-6)


def test_conflict_is_that_of_the_trunk(data):
    seen = set()
    for seed in range(12):
        _, plain, conflict = gradients("UPGrad", "equal", data, seed)
        inner = sum((one * two).sum() for key, (one, two) in plain.items() if key.startswith("trunk"))
        assert conflict == (inner < 0)
        seen.add(conflict)
    assert seen == {False, True}


def test_heads_keep_their_gradients_under_a_coordinatewise_aggregator(data):
    found, plain, _ = gradients("GradDrop", "equal", data)
    for key, pair in plain.items():
        for own, (mine, other) in ((0, pair), (1, pair[::-1])):
            if key.startswith(f"heads.{own}"):
                assert other is None
                torch.testing.assert_close(found[key].double(), mine, rtol=1e-4, atol=1e-6)


def test_the_geometric_mean_does_not_see_the_factor(data):
    equal, unequal = (gradients("GeometricMean", form, data)[0] for form in ("equal", "unequal"))
    for key, gradient in equal.items():
        torch.testing.assert_close(unequal[key], math.sqrt(10) * gradient)


def test_what_a_method_learns_beside_the_model_is_trained(data):
    step = Step(Study("unequal", "Uncertainty", 40, 8, 1), 0.1, 0)
    step(data.train_images[:8], data.train_labels[:8])
    assert step.way.parameters[0].tolist() == pytest.approx([0.1, 0.1], abs=1e-3)  # Adam's first step


def test_famo_hears_of_every_step_and_dwa_of_every_epoch(data):
    famo, dwa = (Step(Study("unequal", name, 40, 8, 1), 0.01, 0) for name in ("FAMO", "DWA"))
    for _ in range(3):
        for step in (famo, dwa):
            step(data.train_images[:8], data.train_labels[:8])
            step.way.end_epoch()
    for step in (famo, dwa):
        weights = step.way._scalar.weights(2)
        assert (weights - weights.mean()).abs().max() > 1e-6


def test_runs_that_diverge_have_no_area(data):
    run = make(STUDY, 1e6, 0, data)
    assert run["diverged"]
    assert run["area"] == math.inf
    huge = Images(data.train_images * 1e30, *list(vars(data).values())[1:])
    assert make(STUDY, 0.01, 0, huge)["diverged"]


def test_costs_are_ratios_within_a_round(data):
    ticks = iter(range(10**6))
    found = step_costs(["UPGrad"], data, 8, 3, clock=lambda: next(ticks))
    assert found == {"batch": 8, "rounds": 3, "milliseconds": 1000.0, "over_plain": {SUM: 1.0, "UPGrad": 1.0}}


WORDS = ["paper", "tasks", "--images", "16", "--batch", "8", "--epochs", "1", "--rounds", "1"]
SEARCH = ["--rates-from", "0.003", "--rates-to", "0.01", "--fine", "1", "--seeds", "2"]


def command(root, folder, *more):
    return [*WORDS, *SEARCH, "--root", str(root), "--journal", str(folder / "j.jsonl"), "--out", str(folder), *more]


def test_interrupted_and_started_again_gives_the_same_runs(root, tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    methods = ("--methods", "sum,mgda")
    assert main(command(root, whole, *methods)) == 0
    made = []

    def stop_at_sixth(*args):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(args)
        return make(*args)

    monkeypatch.setattr("gramjd.experiments.tasks.make", stop_at_sixth)
    with pytest.raises(KeyboardInterrupt):
        main(command(root, parts, *methods))
    monkeypatch.undo()
    with (parts / "j.jsonl").open("a") as file:
        file.write('{"form":"equal","meth')  # a line that was cut short
    assert main(command(root, parts, *methods)) == 0
    ours, theirs = (Journal(folder / "j.jsonl").runs() for folder in (parts, whole))
    assert len(ours) > 16
    assert [{**run, "seconds": 0} for run in ours] == [{**run, "seconds": 0} for run in theirs]
    journal = Journal(parts / "j.jsonl")
    assert len(journal.environments()) == 1
    assert sum("costs" in line for line in journal.lines) == 1  # measured once
    before = (parts / "j.jsonl").read_bytes()
    assert main(command(root, parts, *methods)) == 0  # nothing left to do
    assert (parts / "j.jsonl").read_bytes() == before
    assert "MGDA" in capsys.readouterr().out


def test_command(root, tmp_path, capsys):
    threads = torch.get_num_threads()
    assert main(command(root, tmp_path, "--methods", "sum,famo,upgrad,graddrop", "--json")) == 0
    results = json.loads(capsys.readouterr().out)
    assert torch.get_num_threads() == threads
    assert {(e["form"], e["method"]) for e in results["entries"]} == {
        (form, name) for form in ("equal", "unequal") for name in (SUM, "FAMO", "UPGrad", "GradDrop")
    }
    for entry in results["entries"]:
        assert entry["best"]["seeds"] == [0, 1]
        assert entry["over_sum"] > 0
        assert entry["best"]["rate"] == float(min(entry["rates"], key=lambda rate: entry["rates"][rate]))
    assert (tmp_path / "tasks.png").read_bytes().startswith(b"\x89PNG")
    assert main(command(root, tmp_path, "--budget", "0")) == 0
    assert "start the same command again" in capsys.readouterr().out


def test_command_refuses(root, tmp_path, capsys):
    assert main(command(root, tmp_path, "--budget", "0")) == 1
    assert "holds no run" in capsys.readouterr().err
    assert main(command(root, tmp_path, "--methods", "nosuch,sum")) == 1
    assert "got nosuch; expected 'all' or names among: Sum, " in capsys.readouterr().err
    assert main(command(root, tmp_path, "--search-seeds", "3")) == 1
    assert main(command(tmp_path, tmp_path)) == 1
    assert "get the files from" in capsys.readouterr().err
    assert main(command(root, tmp_path, "--images", "61")) == 1
    assert "got 60 images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(command(root, tmp_path, "--images", "1"))


def test_the_network_is_as_large_as_it_says():
    assert f"{sum(p.numel() for p in TwoTasks().parameters()):,} parameters" in TwoTasks.__doc__


def test_methods_by_name():
    assert select("all") == list(METHODS)
    assert select("nash-mtl,SUM,sum") == ["Nash-MTL", SUM]


def line(method, seed, accuracies, *, form="equal", rate=0.1, area=1.0):
    diverged = area is None
    fields = {"form": form, "method": method, "images": 4, "batch": 2, "epochs": 2, "rate": rate, "seed": seed}
    curves = {"loss": [[1, 3], [0.5, 1.5]], "accuracy": [[0.1, 0.1], *accuracies], "conflicts": None}
    return {**fields, "area": area, **curves, "diverged": diverged, "seconds": 30.0}


def small_journal(path):
    """Two seeds of the plain sum and of UPGrad, whose steps take twice as long, and a search that found nothing."""
    journal = Journal(path)
    versions = {"date": "today", "cpu": "one", "cores": 1, "threads": 1, "system": "none", "versions": {"torch": "2"}}
    journal.append({"environment": versions})
    journal.append({"costs": {"batch": 2, "rounds": 1, "milliseconds": 1.0, "over_plain": {SUM: 1.0, "UPGrad": 2.0}}})
    for run in (
        line(SUM, 0, [[0.5, 0.5], [0.8, 0.6]]),
        line(SUM, 1, [[0.5, 0.5], [0.8, 0.7]]),
        line(SUM, 0, [[0.9, 0.9], [0.9, 0.9]], rate=0.2, area=2.0),
        line("UPGrad", 0, [[0.6, 0.6], [0.9, 0.7]]),
        line("UPGrad", 1, [[0.6, 0.5], [0.9, 0.9]]),
        line("FAMO", 0, [], area=None),
    ):
        journal.append(run)
    return journal


def test_summary_by_hand(tmp_path):
    entries = {e["method"]: e for e in tasks_report.summarise(small_journal(tmp_path / "j"))["entries"]}
    plain, upgrad = entries[SUM], entries["UPGrad"]
    assert (plain["runs"], plain["rates"], plain["best"]["rate"]) == (3, {"0.1": 1.0, "0.2": 2.0}, 0.1)
    assert plain["best"]["upper_left"] == pytest.approx([80, 0], abs=1e-9)
    assert plain["best"]["lower_right"] == pytest.approx([65, 5])
    assert plain["best"]["loss"] == pytest.approx([1.0, 0.0])
    # At the end 0.8 and 0.9 against 0.7 and 0.75; after half of the steps 0.6 and 0.55.
    assert upgrad["best"]["difference"] == pytest.approx([12.5, 2.5])
    assert upgrad["best"]["at_equal_time"] == pytest.approx([-15, 5])
    assert entries["FAMO"]["best"] is None
    assert "none converged" in tasks_report.table({"entries": list(entries.values())})


def test_accuracy_between_and_past_the_epochs():
    run = {"accuracy": [[0.0, 0.2], [0.5, 0.7], [0.7, 0.7]]}
    found = [tasks_report.both_at(run, epoch) for epoch in (0, 0.5, 1, 1.25, 2, 2.01, 7)]
    assert found == pytest.approx([0.1, 0.35, 0.6, 0.625, 0.7, 0.7, 0.7])


def test_table_and_figure_of_a_journal(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks_figure, "FAR", 20.0)
    journal = small_journal(tmp_path / "j")
    rows = tables.tasks(journal, "equal").splitlines()
    assert (
        "| UPGrad | 2 | 0.1 | 2 of 2 | 1.000 ± 0.000 | 90.0 ± 0.0 | 80.0 ± 10.0 | 12.5 ± 2.5 | 2.00 | -15.0 ± 5.0 |"
        in rows
    )
    assert rows[-1].startswith("6 runs, 3 minutes of CPU time")
    figure = tasks_figure.draw(tasks_report.summarise(journal)["entries"])
    (axes,) = figure.axes
    drawn = {c.get_label(): tuple(float(x) for x in c.lines[0].get_xydata()[0]) for c in axes.containers}
    assert drawn == {SUM: pytest.approx((80, 65)), "UPGrad": pytest.approx((90, 80))}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [SUM, "UPGrad"]


def test_what_is_far_off_is_named_and_not_drawn(tmp_path):
    journal = small_journal(tmp_path / "j")
    for seed in (0, 1):
        journal.append(line("MGDA", seed, [[0.6, 0.6], [0.85, 0.5 + 0.01 * seed]]))
    figure = tasks_figure.draw(tasks_report.summarise(journal)["entries"])
    (axes,) = figure.axes
    assert axes.get_title() == "equal losses\noutside: Sum (80.0, 65.0), MGDA (85.0, 50.5)"
    assert [container.get_label() for container in axes.containers] == ["UPGrad"]


def test_every_method_looks_different():
    looks = [tuple(sorted(map(str, look.items()))) for look in tasks_figure.LOOKS.values()]
    assert set(tasks_figure.LOOKS) == set(METHODS)
    assert len(set(looks)) == len(looks)
