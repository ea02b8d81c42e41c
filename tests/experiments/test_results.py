"""A journal survives interruption, and says what is wrong with a damaged one."""

import json
import math

import pytest

from gramjd.errors import InputError
from gramjd.experiments.results import Journal


def test_a_line_cut_short_is_dropped_and_overwritten(tmp_path):
    path = tmp_path / "deep" / "runs.jsonl"
    journal = Journal(path)
    assert journal.runs() == []
    journal.append({"environment": {"cpu": "a"}})
    journal.append({"rate": 1.0, "area": math.inf, "loss": [1.23456789, math.nan]})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"rate": 2.0, "ar')
    again = Journal(path)
    assert again.runs() == [{"rate": 1.0, "area": None, "loss": [1.23457, None]}]
    assert again.environments() == [{"cpu": "a"}]
    again.append({"rate": 3.0})
    assert path.read_bytes() == whole + b'{"rate":3.0}\n'
    assert [run["rate"] for run in Journal(path).runs()] == [1.0, 3.0]


@pytest.mark.parametrize(("line", "said"), [("{broken", "line 2: "), ("[1]", "expected a JSON object")])
def test_a_damaged_line_is_named(tmp_path, line, said):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps({"rate": 1.0}) + f"\n{line}\n" + json.dumps({"rate": 2.0}) + "\n")
    with pytest.raises(InputError, match=said):
        Journal(path)


def test_costs_are_no_runs_and_the_last_ones_count(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append({"rate": 0.1})
    for batch, over in ((32, {"UPGrad": 2.0, "MGDA": 3.0}), (64, {"UPGrad": 9.0}), (32, {"UPGrad": 1.5})):
        journal.append({"costs": {"batch": batch, "over_plain": over}})
    assert journal.runs() == [{"rate": 0.1}]
    assert journal.costs(batch=32) == {"UPGrad": 1.5, "MGDA": 3.0}
    assert journal.costs(batch=8) == {}
