"""`gramjd paper all` runs every experiment."""

import pytest

from gramjd.cli import main
from gramjd.experiments import everything


@pytest.mark.parametrize("column", [1, 2])
def test_options_of_the_stages_are_understood(column, monkeypatch, tmp_path):
    for stage in everything.STAGES:
        seen = []
        monkeypatch.setattr(stage[0], "run", lambda args, seen=seen: seen.append(args) or 3)
        assert everything.run_words(stage[0], [*stage[column], "--out", str(tmp_path)]) == 3
        assert seen[0].out == tmp_path


@pytest.mark.slow
def test_all(tmp_path, capsys):
    assert main(["paper", "all", "--budget", "5s", "--out", str(tmp_path)]) == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert {"trajectories.json", "properties.json", "convergence.json", "cost.json", "iwrm.jsonl"} <= made
    assert "start the same command again" in capsys.readouterr().out
