"""Tables as text."""

import pytest

from gramjd.text_table import aligned, digits, short

ROWS = [["name", "note", "ms"], ["a", "long note", "1"], ["bc", "", "10"]]


def test_columns_stand_as_they_are_told():
    assert aligned(ROWS, "llr").splitlines() == [
        "name  note       ms",
        "-------------------",
        "a     long note   1",
        "bc               10",
    ]
    assert aligned(ROWS, "lr").splitlines()[2] == "a     long note   1"


def test_no_line_ends_in_blanks_and_a_total_is_set_apart():
    lines = aligned([*ROWS, ["sum", "", ""]], total=True).splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert lines[1] == lines[-2] == "-" * max(map(len, lines))
    assert lines[-1] == "sum"


def test_rows_of_another_length_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        aligned([["a", "b"], ["c"]])


def test_numbers():
    assert [digits(x) for x in (0.0, 12345.6, -0.000123456)] == [0.0, 12350.0, -0.0001235]
    assert [short(x) for x in (0.05, 0.1, 9.99, 10.0)] == ["0.050", "0.10", "9.99", "10"]
