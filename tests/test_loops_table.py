"""The table of training loops in the documentation: every row names a test that is there and is run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "howto" / "loops.md"
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "::" in line]


def test_the_table_is_found() -> None:
    table = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert len(ROWS) == len(table) - 2  # but for the head and the rule
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_a_row_names_a_test(row: str) -> None:
    *_, situation, lines, holds, named = [cell.strip() for cell in row.strip("|").split("|")]
    assert all((situation, lines, holds))
    (file, name) = re.fullmatch(r"`([\w/]+\.py)::(\w+)`", named).groups()
    tree = ast.parse((TESTS / file).read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    marks = {ast.unparse(mark) for mark in function.decorator_list}
    assert not any("skip" in mark or "xfail" in mark for mark in marks)
    assert any(isinstance(node, ast.Assert | ast.With | ast.Call) for node in ast.walk(function))
