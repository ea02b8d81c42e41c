"""Results as JSON files that people can read too, whole or growing by a line a run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gramjd.errors import InputError

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


class Journal:
    """JSON lines: a run each, and at every start a line `{"environment": ...}` that says where the next ones are made.

    Lines `{"costs": {...}}` hold what a step costs, apart from the runs, which may share the machine with others.

    An interrupted experiment goes on where it stopped: a line that was cut short is dropped, and its run made again.

    Args:
        path: the file; made when the first line is written.

    Raises:
        InputError: a line that was not cut short is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            self._whole = path.read_bytes().rfind(b"\n") + 1
            self.lines = list(_parsed(path, self._whole))
        else:
            self._whole = 0

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line; numbers that are not finite become null."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plain(line), allow_nan=False, separators=(",", ":")) + "\n"
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.seek(self._whole)
            file.truncate()
            file.write(text.encode())
        self._whole += len(text.encode())
        self.lines.append(json.loads(text))

    def runs(self) -> list[dict[str, Any]]:
        """All lines that are runs."""
        return [line for line in self.lines if not {"environment", "costs"} & line.keys()]

    def costs(self, **same: Any) -> dict[str, float]:
        """Time of a step over the plain one's, per method; a later measurement replaces another.

        Args:
            same: what the measurement must have been made with, as `batch=32`.
        """
        found: dict[str, float] = {}
        for line in self.lines:
            if "costs" in line and all(line["costs"][key] == value for key, value in same.items()):
                found |= line["costs"]["over_plain"]
        return found

    def environments(self) -> list[dict[str, Any]]:
        """Where the runs were made, one entry a start that differs from those before it."""
        found: list[dict[str, Any]] = []
        for line in self.lines:
            if "environment" in line and line["environment"] not in found:
                found.append(line["environment"])
        return found


def _parsed(path: Path, end: int) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(path.read_bytes()[:end].decode().splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: {error.msg}; delete the line, its run is made again") from None
        if not isinstance(line, dict):
            raise InputError(f"{path}, line {number}: got {text[:40]}, expected a JSON object")
        yield line
