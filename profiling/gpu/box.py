"""What a section works in: a time box, a device, and a file that holds every row as soon as it is measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gramjd.text_table import digits

T = TypeVar("T")


class Box:
    """A section's time, place and results.

    Args:
        path: the JSON file; written at once, so that it exists if the section is cut in its first row.
        seconds: how long the section may take.
        dry: tiny sizes on a CPU.
        clock: seconds since some start.
    """

    def __init__(
        self, path: Path, seconds: float, *, dry: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start the time."""
        self.dry = dry
        self.device = "cpu" if dry else "cuda"
        self.seconds = seconds
        self.folder = path.parent
        self._path, self._clock, self._start = path, clock, clock()
        self.found: dict[str, Any] = {"complete": False, "rows": [], "skipped": []}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def left(self) -> float:
        """Seconds left."""
        return self.seconds - (self._clock() - self._start)

    def within(self, items: Iterable[T], name: Callable[[T], str] = str) -> Iterator[T]:
        """The items, while there is time; the names of the others are written down as skipped."""
        for item in items:
            if self.left() > 0:
                yield item
            else:
                self.found["skipped"].append(name(item))
        self._write()

    def add(self, row: dict[str, Any]) -> None:
        """Write a row down, and print it."""
        self.found["rows"].append(row)
        self._write()
        print(
            "  "
            + "  ".join(f"{key} {digits(value) if isinstance(value, float) else value}" for key, value in row.items()),
            flush=True,
        )

    def attempt(self, row: dict[str, Any], work: Callable[[], dict[str, Any]]) -> None:
        """Add `row` with what `work()` returns, or with the error that it raised: the next row may still be right."""
        try:
            found = work()
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {str(error).strip()[:300]}"}
        self.add(row | found)

    def note(self, **facts: Any) -> None:
        """Write down what belongs to the section as a whole."""
        self.found |= facts
        self._write()

    def _write(self) -> None:
        # Written aside and moved: a file that is cut in the middle would lose all rows.
        aside = self._path.with_suffix(".part")
        aside.write_text(json.dumps(self.found, indent=1) + "\n")
        aside.replace(self._path)
