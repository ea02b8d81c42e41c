"""Results as JSON files that people can read too."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FLAT_LIST = re.compile(r"\[\s+([^][{}]*?)\s+\]")


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: six digits, and null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def as_text(results: Mapping[str, Any]) -> str:
    """`plain(results)` as JSON, a line per entry and per list of numbers.

    >>> print(as_text({"loss": [0.1, float("inf")], "rate": 1 / 3}))
    {
     "loss": [0.1, null],
     "rate": 0.333333
    }
    """
    text = json.dumps(plain(results), indent=1, allow_nan=False)
    return _FLAT_LIST.sub(lambda match: "[" + re.sub(r",\s+", ", ", match[1]) + "]", text)


def write(results: Mapping[str, Any], path: Path) -> str:
    """Write `as_text(results)` to `path`, making its folder; returns the text."""
    text = as_text(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return text
