"""`gramjd check`."""

import json
import subprocess
import sys

import pytest

from gramjd import check
from gramjd.cli import main


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "mine_b.py").write_text(
        "from gramjd import Mean\n"
        "instance = Mean()\n"
        "def weights(G):\n    return G.new_ones(len(G))\n"
        "def factory():\n    return Mean()\n"
        "class Needs:\n    def __init__(self, c): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["instance", "weights", "factory"])
@pytest.mark.parametrize(("prop", "status"), [("weighted", 0), ("non_conflicting", 1)])
def test_status_says_whether_it_holds(module, name, prop, status, capsys):
    assert main(["check", f"mine_b:{name}", "--property", prop, "--examples", "20", "--json", "out.json"]) == status
    assert ("FAILS" in capsys.readouterr().out) == bool(status)
    found = json.loads((module / "out.json").read_text())["properties"][prop]
    assert found["holds"] == (status == 0)
    assert (found["counterexample"] is None) == (status == 0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "say what to check"),
        (["mine_b"], "expected MODULE:NAME"),
        (["mine_b:instanc"], "did you mean 'instance'?"),
        (["no_such_module:x"], "there is no module 'no_such_module'"),
        (["mine_b:Needs"], "Needs needs c: write"),
        (["mine_b:instance", "--property", "nice"], "properties must be names"),
        (["mine_b:instance", "--table"], "leave out"),
    ],
)
def test_wrong_use_is_explained(module, argv, message, capsys):
    assert main(["check", *argv]) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_left_in_the_working_folder(tmp_path):
    """Hypothesis keeps files in `.hypothesis` otherwise. In a process of its own: it chooses at import."""
    command = [sys.executable, "-m", "gramjd.cli", "check", "gramjd.aggregation:Mean", "--property", "weighted"]
    done = subprocess.run([*command, "--examples", "5"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "holds" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_how_far_it_is_is_told_whatever_stderr_is(monkeypatch, capsys):
    """At once here; every two seconds in the command."""
    monkeypatch.setattr(check, "_PATIENCE", -1.0)
    main(["check", "gramjd.aggregation:Mean", "--property", "weighted", "--examples", "5"])
    assert "0 of 1 done, now weighted" in capsys.readouterr().err
