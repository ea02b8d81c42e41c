"""`gramjd paper objections`: what is seen in a step, and the command."""

import json

import pytest
import torch

from gramjd.cli import main
from gramjd.experiments.data.sets import load_digits
from gramjd.experiments.objections import NAMES, followed, rows, seen


def test_what_a_step_tells():
    J = torch.diag(torch.tensor([2.0, 2.0, 0.01]))
    found = seen(J @ J.T, torch.tensor([0.5, 2.0, 1.0]))
    assert found == pytest.approx({"largest": 6.0, "short": 1 / 3, "rank": 2.0}, rel=1e-4)


def test_weights_of_the_definition_grow_where_images_are_fitted_and_those_of_the_variants_do_not():
    data = load_digits(0)
    largest = {name: followed("digits", name, 0.15, data, epochs=2, seed=0)[-1]["largest"] for name in NAMES}
    assert largest["UPGrad"] > 1e3 > 100 > max(largest["UPGrad + ridge"], largest["UPGrad + negligible"])
    assert largest["Mean"] == pytest.approx(1)


def test_a_run_that_diverges_has_fewer_epochs():
    assert len(followed("digits", "Mean", 1e4, load_digits(0), epochs=2, seed=0)) < 2


def test_rows_name_what_diverged():
    epoch = {"loss": 1.0, "rise": 0.5, "largest": 2.0, "short": 0.25, "rank": 3.0}
    runs = [{"aggregator": "UPGrad", "seed": n, "epochs": [epoch] * count} for n, count in enumerate((3, 1))]
    assert rows(runs) == [
        ["UPGrad", "1", "1.0000", "0.50", "2", "25%", "3.0"],
        ["UPGrad (1 of 2 diverged)", "2", "1.0000", "0.50", "2", "25%", "3.0"],
        ["UPGrad (1 of 2 diverged)", "3", "1.0000", "0.50", "2", "25%", "3.0"],
    ]


@pytest.mark.slow
def test_command(capsys, tmp_path):
    assert main(["paper", "objections", "--epochs", "1", "--seeds", "1", "--out", str(tmp_path), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [run["aggregator"] for run in results["runs"]] == list(NAMES)
    assert (tmp_path / "objections-digits.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "objections-digits.json").read_text()) == results
