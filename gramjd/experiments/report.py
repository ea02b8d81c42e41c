"""Tables as text, and the numbers in their cells."""

from __future__ import annotations

import math
from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell: the first two to the left, the rest to the right; a rule below the head.

    >>> print(align([["a", "b", "c"], ["dd", "e", "10"]]))
    a   b   c
    --  -  --
    dd  e  10
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def average(values: Sequence[float], shape: str) -> str:
    """The mean of what is not NaN, or `-`.

    >>> average([0.5, math.nan, 0.25], "{:.3f}"), average([], "{:.3f}")
    ('0.375', '-')
    """
    known = [value for value in values if not math.isnan(value)]
    return shape.format(sum(known) / len(known)) if known else "-"


def mean_and_error(values: Sequence[float | None]) -> list[float | None]:
    """Mean and its standard error; the error is null with one value, both are where no value is known.

    >>> mean_and_error([1.0, 3.0])
    [2.0, 1.0]
    """
    known = [value for value in values if value is not None]
    if not known:
        return [None, None]
    mean = sum(known) / len(known)
    if len(known) < 2:
        return [rounded(mean), None]
    variance = sum((value - mean) ** 2 for value in known) / (len(known) - 1)
    return [rounded(mean), rounded(math.sqrt(variance / len(known)))]


def with_error(pair: Sequence[float | None], shape: str = "{:.3f}") -> str:
    """`mean ± error`, or what there is of it.

    >>> with_error([1.0, 0.25]), with_error([1.0, None]), with_error([None, None])
    ('1.000 ± 0.250', '1.000', '-')
    """
    known = [shape.format(x) for x in pair if x is not None]
    return " ± ".join(known) if known else "-"


def rounded(value: float) -> float | None:
    """Five digits; null for what is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
