"""Tables as text: aligned for a terminal, as Markdown, and between the marks of a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

Row = Sequence[str]
MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end table -->)", re.DOTALL)


def aligned(rows: Sequence[Row], sides: str = "l", total: bool = False) -> str:
    """A table whose columns are as wide as their widest cell.

    Args:
        rows: cells of each row, the head first.
        sides: `l` or `r` per column, the last one also for those that follow it.
        total: the last row is set apart.

    >>> print(aligned([["method", "ms"], ["plain", "1.5"], ["gramjd", "12.5"]], "lr"))
    method    ms
    ------------
    plain    1.5
    gramjd  12.5
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = sides.ljust(len(widths), sides[-1])
    lines = [
        "  ".join(
            f"{cell:{'>' if side == 'r' else '<'}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        )
        for row in rows
    ]
    head, *body = map(str.rstrip, lines)
    rule = "-" * max(map(len, (head, *body)))
    return "\n".join([head, rule, *body[:-1], rule, body[-1]] if total else [head, rule, *body])


def wrapped(head: str, text: str, width: int = 110) -> str:
    """A text after its head, broken into lines of `width` letters that stand below the first.

    >>> print(wrapped("m: ", "number of losses", 14))
    m: number of
       losses
    """
    return fill(text, width, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False)


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table: the first row is its head, the first column stands to the left.

    >>> print(markdown([["case", "m"], ["mlp", "32"]]))
    | case | m |
    |---|---:|
    | mlp | 32 |
    """
    rule = "|---" + "|---:" * (len(rows[0]) - 1) + "|"
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, rule, *body])


def filled(
    text: str,
    root: Path,
    results: Path,
    tables: Mapping[str, tuple[str, Callable[[Any], str]]],
    read: Callable[[Path], Any],
) -> str:
    """`text` with each table between marks made anew, from what `read` gives for its file in `root / results`.

    A table stands between `<!-- table: NAME -->` and `<!-- end table -->`; `tables` has its file and what makes it.

    Raises:
        KeyError: a mark names no table.
    """

    def fill(match: re.Match[str]) -> str:
        file, make = tables[match["name"]]
        path = root / results / file
        table = make(read(path)) if path.is_file() else f"(no {results / file})"
        return f"{match[1]}{table}\n{match[3]}"

    return MARKED.sub(fill, text)


def digits(number: float, count: int = 4) -> float:
    """A number rounded to its first digits, as results are written down.

    >>> digits(1234.567), digits(0.00012345, 2)
    (1235.0, 0.00012)
    """
    return float(f"{number:.{count}g}")


def short(number: float) -> str:
    """A positive number for a cell.

    >>> short(0.0123), short(1.234), short(123.4)
    ('0.012', '1.23', '123')
    """
    return f"{number:.3f}" if number < 0.1 else f"{number:.2f}" if number < 10 else f"{number:.0f}"
