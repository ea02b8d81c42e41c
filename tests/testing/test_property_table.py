"""The table agrees with the paper."""

import re
from pathlib import Path

import pytest

from gramjd import aggregation
from gramjd.testing.table import ENTRIES, STATED, property_table

PAPER = [entry for entry in ENTRIES if entry.source != "own documentation"]
# Table 1 once more, so that a slip in the entries shows.
TABLE_1 = {
    "MGDA": "yes no yes",
    "DualProj": "yes no yes",
    "GradDrop": "no no no",
    "NashMTL": "yes no yes",
    "UPGrad": "yes yes yes",
}


@pytest.mark.parametrize("entry", PAPER, ids=lambda entry: entry.label or repr(entry.make()))
def test_the_paper_is_confirmed(entry):
    table = property_table([entry], STATED, examples=30, shrink=False)
    assert table.differences() == []
    assert table.not_found() == []


def test_entries_are_those_of_the_paper():
    stated = {getattr(e.make, "__name__", ""): e.stated for e in PAPER if e.rows == (1, 5)}
    assert {name: stated[name] for name in TABLE_1} == TABLE_1


def test_differences_are_named():
    wrong = type(ENTRIES[0])(aggregation.Mean, "yes yes yes", "a rumour")
    table = property_table([wrong], STATED, examples=20)
    assert table.differences() == ["Mean(): non_conflicting is stated to be yes (a rumour), found: no"]
    assert "2 of 3 statements confirmed." in str(table)
    assert "J = torch.tensor(" in table.counterexamples()


def test_too_few_examples_contradict_nothing():
    """No single matrix shows that the mean may conflict, where there is one loss."""
    alone = type(ENTRIES[0])(aggregation.Mean, "no yes yes", "a rumour", rows=1)
    table = property_table([alone], STATED, examples=3)
    assert table.differences() == []
    (line,) = table.not_found()
    assert line.startswith("Mean(): non_conflicting is stated to be no (a rumour); no counterexample among 3 matrices")
    assert line in str(table)
    assert table.to_dict()["not_found"] == [line]
    assert "2 of 3 statements confirmed." in str(table)


def test_the_page_shows_every_entry_as_stated():
    page = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
    block = re.search(r"<!-- gramjd check --table -->\n```\n(.*?)```", page, re.DOTALL)[1]
    lines = {re.split(r" {2,}", line)[0]: re.split(r" {2,}", line)[1:] for line in block.splitlines()}
    for entry in ENTRIES:
        label = entry.label or repr(entry.make())
        assert len(lines[label]) == 10
        for stated, shown in zip(entry.stated.split(), lines[label], strict=False):
            assert stated in (shown, "-")
    assert re.search(r"^(\d+) of \1 statements confirmed", block, re.MULTILINE)


@pytest.mark.slow
def test_every_aggregator_thoroughly():
    table = property_table(properties=STATED, examples=400, seed=1, shrink=False)
    assert table.differences() == []
    assert table.not_found() == []
