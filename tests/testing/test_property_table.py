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
    assert property_table([entry], STATED, examples=30, shrink=False).differences() == []


def test_entries_are_those_of_the_paper():
    stated = {getattr(e.make, "__name__", ""): e.stated for e in PAPER if e.rows == (1, 5)}
    assert {name: stated[name] for name in TABLE_1} == TABLE_1


def test_differences_are_named():
    wrong = type(ENTRIES[0])(aggregation.Mean, "yes yes yes", "a rumour")
    table = property_table([wrong], STATED, examples=20)
    assert table.differences() == ["Mean(): non_conflicting is stated to be yes (a rumour), found: no"]
    assert "2 of 3 statements confirmed." in str(table)
    assert "J = torch.tensor(" in table.counterexamples()


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
    assert property_table(properties=STATED, examples=400, seed=1, shrink=False).differences() == []
