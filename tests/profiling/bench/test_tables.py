"""The tables of the pages match the results they are made from."""

import json
import re

import pytest

from gramjd.cli import main
from gramjd.profiling.bench import tables
from gramjd.profiling.bench.__main__ import BENCHMARKS
from gramjd.text_table import MARKED


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


def test_pages_are_up_to_date():
    assert main(["tables", "--check"], BENCHMARKS) == 0, (
        "run python -m gramjd.profiling.bench tables and commit what it changed"
    )


def test_every_table_is_on_one_page():
    text = "".join((tables.ROOT / page).read_text() for page in tables.PAGES)
    assert sorted(match["name"] for match in MARKED.finditer(text)) == sorted(tables.TABLES)


def test_every_figure_is_on_one_page():
    text = "".join((tables.ROOT / page).read_text() for page in tables.PAGES)
    shown = re.findall(r"!\[[^]]*\]\((?:docs/)?figures/([^)]*)\)", text)
    assert sorted(shown) == sorted(tables.readme_figures.FIGURES)


def test_times():
    text = tables.step_time(REPORT)
    assert "| an MLP | 4 | 10.0 | 1.50 (1.00 to 12) | refused |" in text
    assert "2001-02-03; a CPU, 2 cores, Linux; torch 9; allocator: default." in text
    assert "theirs refused. `ValueError: no`" in text
    assert "differs from the exact one by 0.25" in text


def test_refusals_that_differ_in_numbers_are_one_line():
    case = REPORT["cases"]["mlp-4"]
    cases = {
        name: {**case, "contenders": {**case["contenders"], "theirs": {"refused": f"ValueError: size {m}"}}}
        for name, m in (("mlp-4", 4), ("mlp-8", 8))
    }
    text = tables.step_time({**REPORT, "cases": cases})
    assert "- mlp-4, mlp-8: theirs refused. `ValueError: size 4`" in text
    assert text.count("ValueError") == 1


def overview_report():
    both = {"plain": result(1, 2e6), "gramjd UPGrad": result(1.5, 3e6), "torchjd UPGrad": result(40, 8e6)}
    refused = {**both, "gramjd UPGrad": result(2.5, 2e6), "torchjd UPGrad": {"refused": "no"}}
    cases = {
        "a-4": {"title": "a", "m": 4, "contenders": {**both, "gramjd UPGrad": result(9, 2e6)}},
        "a-8": {"title": "a", "m": 8, "contenders": both},
        "b-8": {"title": "b", "m": 8, "contenders": refused},
    }
    return {**REPORT, "cases": cases}


def test_overview_counts_what_each_library_runs():
    text = " ".join(tables.overview(overview_report()).split())
    assert "On 3 benchmark cases a step with UPGrad takes 1.50 to 9.00 times as long as plain training" in text
    assert "and 1.00 to 1.50 times its memory" in text
    assert "TorchJD's engine runs 2 of them, with 40 to 40 times the time and 4.00 to 4.00 times the memory" in text


def test_overview_figure_shows_the_largest_m_and_says_what_was_refused():
    time, space = tables.readme_figures.overview(overview_report()).axes
    assert [label.get_text() for label in time.get_yticklabels()] == ["a, m = 8", "b, m = 8"]
    assert [text.get_text() for text in time.texts] == ["1.50", "2.5", "40", "refused"]
    assert [text.get_text() for text in space.texts] == ["1.50", "1.00", "4.0", "refused"]
    low, high = sorted(time.get_ylim())
    assert all(low < text.xy[1] < high for text in time.texts)


def test_memory_figure_shows_every_point():
    def model(*ratios):
        points = [
            {"m": 8 * 2**k, "plain": 2.0, "gramjd": 2 * r, "gramjd reuse": 3 * r, "predicted": 2 * r}
            for k, r in enumerate(ratios)
        ]
        return {"title": f"up to {max(ratios)}", "points": points}

    figure = tables.readme_figures.memory({"models": {"a": model(1.0, 1.1), "b": model(2.0, 9.0)}})
    assert len(figure.axes) == 4
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert all(low <= y <= high for line in axes.lines for y in line.get_ydata())
    assert [[text.get_text() for text in legend.texts] for legend in figure.legends] == [["up to 9.0", "up to 1.1"]]


def test_products_are_shown_where_they_are_known():
    used = {"gramjd": "oneDNN (a reason)", "others": "PyTorch's own, MKL"}
    text = tables.step_time({**REPORT, "products": used})
    assert "; torch 9; products: gramjd oneDNN (a reason), others PyTorch's own, MKL; allocator: default." in text
    assert "products" not in tables.step_time(REPORT)


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
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("nothing to fill\n")
    (tmp_path / "docs/benchmarks.md").write_text("<!-- table: step-time -->\nstale\n<!-- end table -->\n")
    assert main(["tables", "--check"], BENCHMARKS) == 1
    assert "docs/benchmarks.md does not match" in capsys.readouterr().err
    assert main(["tables"], BENCHMARKS) == 0
    assert main(["tables", "--check"], BENCHMARKS) == 0


def test_unknown_marker():
    with pytest.raises(KeyError, match="nosuch"):
        tables.render("<!-- table: nosuch -->\n<!-- end table -->")


def weights_row(weighting, gradients, m, theirs, **ours):
    contenders = {"exact": {"ms": 2.0, "error": 0.0}, "eigh": {"ms": 0.5}, "torchjd": theirs}
    return {"weighting": weighting, "gradients": gradients, "m": m, "contenders": {**contenders, **ours}}


WEIGHTS = {
    "environment": {**REPORT["environment"], "threads": 1},
    "load": 0.25,
    "results": [
        weights_row(
            "UPGrad", "CNN, init", 128, {"ms": 50.0, "error": 0.02}, **{"tol=1e-2": {"ms": 1.5, "error": 3e-5}}
        ),
        weights_row("UPGrad", "random", 64, {"ms": 9.0, "error": 0.1}, **{"tol=1e-2": {"ms": 1.0, "error": None}}),
        {
            "weighting": "UPGrad",
            "gradients": "random",
            "m": 1024,
            "contenders": {"exact": {"ms": 4000.0, "peak_bytes": 2**28}},
        },
        {
            "weighting": "UPGrad",
            "gradients": "opposed",
            "m": 66,
            "rank": 65,
            "contenders": {"exact": {"ms": 6.0}, "random": {"ms": 2.0}},
        },
        weights_row("MGDA", "CNN, trained", 32, {"ms": 1.0, "error": None}),
        weights_row("MGDA", "CNN, init", 32, {"ms": 1.0, "error": 0.5}),
        weights_row("NashMTL", "CNN, trained", 32, {"refused": "ImportError: no cvxpy"}),
    ],
}


def test_weights():
    text = tables.weights(WEIGHTS)
    assert "| CNN, init | 128 | 2.00 | 1.50 | 0.50 | 50 | 25 | 2e-02 |" in text
    assert "| 64 |" not in text
    assert "threads: 1; load of the machine: 0.2." in text
    assert "networks, m = 128 to 128: `tol=1e-2` takes 0.75 to 0.75 times the exact solve" in text
    assert "largest error of an update with `tol=1e-2`: 3e-05." in text
    assert "- random, m = 1024: exact in 4.00 s; peak beyond the Gramian 256 MiB." in text


def test_weights_close_to_singular():
    assert tables.weights_singular(WEIGHTS).splitlines()[2:] == ["| opposed | 66 | 65 | 6.00 | 2.00 | 3.00 |"]
    assert "opposed" not in tables.weights(WEIGHTS)


def test_weights_of_the_others():
    text = tables.weights_others(WEIGHTS)
    assert "| MGDA | CNN, trained | 32 | 2.00 | 0.50 | 1.00 | 0.50 | - |" in text
    assert "| NashMTL | CNN, trained | 32 | 2.00 | 0.50 | refused |" in text
    assert "- NashMTL: TorchJD refused. `ImportError: no cvxpy`" in text
    assert "init" not in text
