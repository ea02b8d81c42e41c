"""`gramjd bench`: what it refuses, what it compares; figures match their results."""

import copy
import json

import pytest

from gramjd.cli import main
from gramjd.errors import InputError
from gramjd.profiling.bench import command, readme_figures, tables
from gramjd.profiling.bench.__main__ import BENCHMARKS
from tests.profiling.bench.test_tables import REPORT


@pytest.mark.slow
def test_red_tests_stop_the_benchmark(tmp_path):
    (tmp_path / "test_a.py").write_text("def test_a():\n    assert 1 == 2\n")
    (tmp_path / "test_b.py").write_text("def test_b():\n    pass\n")
    with pytest.raises(command.RedTestsError, match="1 failed"):
        command.run_tests(tmp_path, ("test_b.py", "test_a.py"))
    assert "1 passed" in command.run_tests(tmp_path, ("test_b.py",))
    with pytest.raises(InputError, match="--no-tests"):
        command.run_tests(tmp_path, ("nosuch.py",))


def test_the_tests_are_there():
    assert all((command.ROOT / name).exists() for name in command.TESTS)


def test_bench_says_that_no_tests_were_run(tmp_path, capsys):
    path = tmp_path / "step.json"
    command = ["bench", "--cases", "tiny", "--rounds", "5", "--seconds", "0.2", "--no-tests", "--json", str(path)]
    assert main(command) == 0
    assert json.loads(path.read_text())["tests"] == "not run"
    assert main(["bench", "--cases", "nosuch"]) == 1
    assert "got case 'nosuch'" in capsys.readouterr().err


MEASURING = [name for name in (bench.words for bench in BENCHMARKS) if name != "tables"]


@pytest.mark.parametrize("name", MEASURING)
def test_every_benchmark_names_the_products_in_its_results(name):
    text = (command.ROOT / f"profiling/bench/{name}.py").read_text()
    assert "describe(" in text
    assert '"products": products_used(' in text


def test_compare(tmp_path, capsys):
    after = copy.deepcopy(REPORT)
    outcome = after["cases"]["mlp-4"]["contenders"]
    outcome["ours"]["ratio"] = {"median": 0.5, "low": 0.4, "high": 0.6}
    outcome["theirs"] = outcome["plain"]
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, report in zip(paths, (REPORT, after), strict=True):
        path.write_text(json.dumps(report))
    assert main(["bench", "--compare", *map(str, paths)]) == 0
    text = capsys.readouterr().out
    assert "faster: 0.33" in text
    assert "changed" in text
    assert main(["bench", "--compare", str(paths[0]), str(paths[0])]) == 0
    assert "within the spread" in capsys.readouterr().out
    paths[1].write_text("{}")
    assert main(["bench", "--compare", *map(str, paths)]) == 1
    assert "it has no cases" in capsys.readouterr().err


def test_figures_match_their_results():
    assert readme_figures.outdated(tables.ROOT, tables.RESULTS) == []


def test_figures_drift(tmp_path):
    source = tmp_path / tables.RESULTS / "memory_cpu.json"
    source.parent.mkdir(parents=True)
    points = [{"m": m, "plain": 10, "gramjd": 11, "gramjd reuse": 20, "predicted": 11} for m in (8, 16)]
    source.write_text(json.dumps({"models": {"a": {"title": "A", "points": points}}}))
    assert readme_figures.outdated(tmp_path, tables.RESULTS) == ["memory.svg"]
    readme_figures.write(tmp_path, tables.RESULTS)
    assert readme_figures.outdated(tmp_path, tables.RESULTS) == []
    source.write_text(source.read_text() + "\n")
    assert readme_figures.outdated(tmp_path, tables.RESULTS) == ["memory.svg"]
