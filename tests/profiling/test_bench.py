"""`gramjd bench` and `gramjd profile`: what they refuse, what they compare."""

import copy
import json

import pytest

from gramjd.cli import main
from gramjd.errors import InputError
from gramjd.profiling import bench, readme_figures, tables
from tests.profiling.test_tables import REPORT

MAKE = "tests.profiling.makers:make"


@pytest.mark.slow
def test_red_tests_stop_the_benchmark(tmp_path):
    (tmp_path / "test_a.py").write_text("def test_a():\n    assert 1 == 2\n")
    (tmp_path / "test_b.py").write_text("def test_b():\n    pass\n")
    with pytest.raises(bench.RedTestsError, match="1 failed"):
        bench.run_tests(tmp_path, ("test_b.py", "test_a.py"))
    assert "1 passed" in bench.run_tests(tmp_path, ("test_b.py",))
    with pytest.raises(InputError, match="--no-tests"):
        bench.run_tests(tmp_path, ("nosuch.py",))


def test_the_tests_are_there():
    assert all((bench.ROOT / name).exists() for name in bench.TESTS)


def test_bench_says_that_no_tests_were_run(tmp_path, capsys):
    path = tmp_path / "step.json"
    command = ["bench", "--cases", "tiny", "--rounds", "5", "--seconds", "0.2", "--no-tests", "--json", str(path)]
    assert main(command) == 0
    assert json.loads(path.read_text())["tests"] == "not run"
    assert main(["bench", "--cases", "nosuch"]) == 1
    assert "got case 'nosuch'" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((bench.ROOT / "profiling").glob("bench_*.py")), ids=lambda path: path.stem)
def test_every_benchmark_names_the_products_in_its_results(path):
    text = path.read_text()
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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--predict", "--sweep", "m=4,8"], "m = 8  saved"),
        (["--largest-m", "--memory", "100kB"], "largest m: "),
        (["--layers", "--m", "4"], "the walk in between"),
    ],
)
def test_views(options, expected, capsys):
    if "100kB" in options:
        options = [*options[:-1], "0.1MB"]
    assert main(["profile", MAKE, *options]) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--memory", "8GB?"], ["--sweep", "m=1"], ["--memory-limit", "-1"]])
def test_bad_options(options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["profile", MAKE, *options])
    assert stop.value.code == 2
    assert "expected" in capsys.readouterr().err


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
