"""The README's tables match the results they are made from."""

import json

import pytest

from gramjd.profiling import tables


def result(median, peak):
    return {
        "milliseconds": {"median": 10 * median},
        "ratio": {"median": median, "low": 1, "high": 12},
        "peak_bytes": peak,
    }


REPORT = {
    "environment": {
        "date": "2001-02-03",
        "cpu": "a CPU",
        "cores": 2,
        "system": "Linux",
        "versions": {"torch": "9"},
        "allocator": "default",
    },
    "cases": {
        "mlp-4": {
            "title": "an MLP",
            "m": 4,
            "contenders": {"plain": result(1, 2e6), "ours": result(1.5, 3e6), "theirs": {"refused": "ValueError: no"}},
            "torchjd_gramian_difference": 0.25,
        }
    },
}


def test_readme_is_up_to_date():
    assert tables.main(["--check"]) == 0, "run python -m gramjd.profiling.tables and commit README.md"


def test_every_table_is_in_the_readme():
    found = [match["name"] for match in tables.MARKED.finditer((tables.ROOT / "README.md").read_text())]
    assert sorted(found) == sorted(tables.TABLES)


def test_times():
    text = tables.step_time(REPORT)
    assert "| an MLP | 4 | 10.0 | 1.50 (1.00 to 12) | refused |" in text
    assert "2001-02-03; a CPU, 2 cores, Linux; torch 9; allocator: default." in text
    assert "theirs refused. `ValueError: no`" in text
    assert "differs from the exact one by 0.25" in text


def test_memory():
    assert "| an MLP | 4 | 2.0 | 1.50 | refused |" in tables.step_memory(REPORT)


def test_render_replaces_what_is_between_the_markers_only(tmp_path):
    (tmp_path / tables.RESULTS).mkdir(parents=True)
    (tmp_path / tables.RESULTS / "step_cpu.json").write_text(json.dumps(REPORT))
    text = "before\n<!-- table: step-memory -->\nstale\n<!-- end table -->\nafter\n"
    once = tables.render(text, tmp_path)
    assert once.startswith("before\n<!-- table: step-memory -->\n| case |")
    assert once.endswith("\n<!-- end table -->\nafter\n")
    assert "stale" not in once
    assert tables.render(once, tmp_path) == once


def test_check_fails_on_drift(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables.render, "__defaults__", (tmp_path,))
    (tmp_path / "README.md").write_text("<!-- table: step-time -->\nstale\n<!-- end table -->\n")
    assert tables.main(["--check"]) == 1
    assert "does not match" in capsys.readouterr().err
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0


def test_unknown_marker():
    with pytest.raises(KeyError, match="nosuch"):
        tables.render("<!-- table: nosuch -->\n<!-- end table -->")
