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
    (tmp_path / "README.md").write_text("<!-- table: step-time -->\nstale\n<!-- end table -->\n")
    assert tables.main(["--check"]) == 1
    assert "does not match" in capsys.readouterr().err
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0


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
            "UPGrad", "CNN, init", 128, {"ms": 50.0, "error": 0.02}, **{"tol=1e-4": {"ms": 1.5, "error": 3e-5}}
        ),
        weights_row("UPGrad", "random", 64, {"ms": 9.0, "error": 0.1}, **{"tol=1e-4": {"ms": 1.0, "error": None}}),
        {
            "weighting": "UPGrad",
            "gradients": "random",
            "m": 1024,
            "contenders": {"exact": {"ms": 4000.0, "peak_bytes": 2**28}},
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
    assert "networks, m = 128 to 128: `tol=1e-4` takes 3.00 to 3.00 times one `eigh`" in text
    assert "largest error of an update with `tol=1e-4`: 3e-05." in text
    assert "- random, m = 1024: exact in 4.00 s; peak beyond the Gramian 256 MiB." in text


def test_weights_of_the_others():
    text = tables.weights_others(WEIGHTS)
    assert "| MGDA | CNN, trained | 32 | 2.00 | 0.50 | 1.00 | 0.50 | - |" in text
    assert "| NashMTL | CNN, trained | 32 | 2.00 | 0.50 | refused |" in text
    assert "- NashMTL: TorchJD refused. `ImportError: no cvxpy`" in text
    assert "init" not in text
