"""The step benchmark on the smallest case."""

import json
import os
import subprocess
import sys

import pytest

import gramjd
from gramjd.cli import main
from gramjd.kernels.dispatch import current_backend
from gramjd.profiling.bench import step
from gramjd.profiling.bench.cases import CASES
from gramjd.profiling.environment import KEEP_FREED, describe, keeps_freed
from gramjd.profiling.marks import ignore
from gramjd.profiling.methods import METHODS, RefusalError

TINY = ["bench", "--no-tests", "--cases", "tiny", "--rounds", "5", "--seconds", "1"]


def test_report(tmp_path, capsys):
    path = tmp_path / "new" / "step.json"
    assert main([*TINY, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    outcome = report["cases"]["tiny-4"]["contenders"]
    assert set(outcome) == set(step.CONTENDERS)
    assert outcome["plain"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    for name in ("plain", "gramjd Mean", "gramjd UPGrad"):
        assert outcome[name]["rounds"] == 5
        assert outcome[name]["milliseconds"]["median"] > 0
        assert outcome[name]["peak_bytes"] >= 4 * 95  # at least the gradients of 95 parameters
    assert "gramjd UPGrad" in capsys.readouterr().out


def test_contenders_fill_the_same_gradients():
    grads = {}
    for name in ("plain", "gramjd Mean"):
        work = CASES["tiny-4"].build()
        contender = step.CONTENDERS[name]
        METHODS[contender.method](work, contender.aggregator)(ignore)
        grads[name] = [p.grad for p in work.parameters.values()]
    for expected, got in zip(grads["plain"], grads["gramjd Mean"], strict=True):
        assert (expected - got).abs().max() < 1e-6


def test_what_cannot_be_run_is_reported(monkeypatch):
    def refuse(work, aggregator):
        raise RefusalError("does not take linear layers")

    monkeypatch.setitem(METHODS, "other", refuse)
    monkeypatch.setitem(step.CONTENDERS, "other", step.Contender("other"))
    outcome = step.measure(CASES["tiny-4"], device="cpu", rounds=5, seconds=1)
    assert outcome["other"] == {"refused": "does not take linear layers"}


def test_missing_torchjd_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "torchjd.autogram", None)
    with pytest.raises(RefusalError, match=r"gramjd\[bench\]"):
        step.step_of(CASES["tiny-4"].build(), step.CONTENDERS["torchjd Mean"])


def test_environment_names_neither_host_nor_folder():
    text = json.dumps(describe())
    assert {"date", "cpu", "cores", "threads", "allocator", "versions"} <= set(describe())
    assert os.uname().nodename not in text.split('"')
    assert os.getcwd() not in text


def test_some_contenders_on_another_backend(tmp_path, monkeypatch):
    seen = set()
    gram_backward = gramjd.gram_backward
    monkeypatch.setattr(gramjd, "gram_backward", lambda *a, **k: seen.add(current_backend()) or gram_backward(*a, **k))
    path = tmp_path / "step.json"
    options = ["--backend", "torch", "--contenders", "plain,gramjd Mean", "--json", str(path)]
    assert main([*TINY, *options]) == 0
    report = json.loads(path.read_text())
    assert list(report["cases"]["tiny-4"]["contenders"]) == ["plain", "gramjd Mean"]
    assert report["settings"]["backend"] == "torch"
    assert report["products"]["gramjd"].endswith('(backend "torch")')
    assert report["products"]["gramjd"].startswith(report["products"]["others"])
    assert seen == {"torch"}


@pytest.mark.parametrize("names", ["gramjd Mean", "plain,nobody"])
def test_unknown_contenders(names, capsys):
    assert main([*TINY, "--contenders", names]) == 1
    assert "'plain' must be among them" in capsys.readouterr().err


def test_unknown_case(capsys):
    assert main(["bench", "--no-tests", "--cases", "nosuch"]) == 1
    assert "got case 'nosuch'" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_keep_freed_restarts_with_the_settings(tmp_path):
    path = tmp_path / "kept.json"
    command = [sys.executable, "-m", "gramjd.cli", *TINY, "--keep-freed", "--json", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(path.read_text())["environment"]["allocator"] == "freed blocks kept"
    assert keeps_freed(KEEP_FREED)
    assert not keeps_freed({})
