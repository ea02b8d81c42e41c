"""The table agrees with the paper."""

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
    table = property_table([entry], STATED, examples=30)
    assert table.differences() == []
    assert all(
        result.counterexample.J.shape[0] <= 6 for r in table.reports for result in r.results.values() if not result
    )


def test_entries_are_those_of_the_paper():
    stated = {getattr(e.make, "__name__", ""): e.stated for e in PAPER if e.rows == (1, 5)}
    assert {name: stated[name] for name in TABLE_1} == TABLE_1


def test_differences_are_named():
    wrong = type(ENTRIES[0])(aggregation.Mean, "yes yes yes", "a rumour")
    table = property_table([wrong], STATED, examples=20)
    assert table.differences() == ["Mean(): non_conflicting is stated to be yes (a rumour), found: no"]
    assert "2 of 3 statements confirmed." in str(table)
    assert "J = torch.tensor(" in table.counterexamples()


@pytest.mark.slow
def test_every_aggregator_thoroughly():
    assert property_table(properties=STATED, examples=400, seed=1).differences() == []
