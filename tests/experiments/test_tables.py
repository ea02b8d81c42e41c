"""The tables of docs/paper.md match the results they are made from."""

import json
import shutil

import pytest

from gramjd.experiments import tables
from gramjd.text_table import MARKED


def test_page_is_up_to_date():
    assert tables.main(["--check"]) == 0, "run python -m gramjd.experiments.tables and commit docs/paper.md"


def test_every_table_is_on_the_page():
    found = [match["name"] for match in MARKED.finditer((tables.ROOT / tables.PAGE).read_text())]
    assert sorted(found) == sorted(tables.TABLES)


def test_figures_of_the_page_exist():
    page = (tables.ROOT / tables.PAGE).read_text()
    links = [part.split(")")[0].split("#")[0] for part in page.split("](")[1:]]
    assert [link for link in links if "://" not in link and not (tables.ROOT / "docs" / link).exists()] == []


def test_check_fails_when_a_result_changes(tmp_path, capsys):
    shutil.copytree(tables.ROOT / tables.RESULTS, tmp_path / tables.RESULTS)
    (tmp_path / "docs").mkdir()
    shutil.copy(tables.ROOT / tables.PAGE, tmp_path / tables.PAGE)
    assert tables.main(["--check"], tmp_path) == 0
    results = tmp_path / tables.RESULTS / "trajectories.json"
    changed = json.loads(results.read_text())
    changed["toys"]["cqf"]["Mean"]["largest_increase"] = 123.0
    results.write_text(json.dumps(changed))
    assert tables.main(["--check"], tmp_path) == 1
    assert "does not match" in capsys.readouterr().err
    assert tables.main([], tmp_path) == 0
    assert tables.main(["--check"], tmp_path) == 0


def test_unknown_marker():
    with pytest.raises(KeyError, match="nosuch"):
        tables.render("<!-- table: nosuch -->\n<!-- end table -->")
