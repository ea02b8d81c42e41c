"""Where a monitor's numbers go: a CSV file, or TensorBoard. Any logger that takes a dict of floats does without."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from gramjd.extras import require


class CsvWriter:
    """A line a step, flushed at once: what is there survives a crash.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "log.csv"
    >>> with CsvWriter(path) as log:
    ...     log.write(0, {"loss": 1.5, "cosine": 0.25})
    >>> path.read_text()
    'step,loss,cosine\\n0,1.5,0.25\\n'
    """

    def __init__(self, path: Path | str) -> None:
        """Open the file anew; its folder is made if it is not there."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "w", newline="")  # noqa: SIM115  (closed in `close`)
        self._writer: csv.DictWriter[str] | None = None

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """One line; the first decides the columns."""
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, ["step", *numbers], lineterminator="\n")
            self._writer.writeheader()
        self._writer.writerow({"step": step, **numbers})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> CsvWriter:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()


class TensorBoardWriter:
    """A scalar `gramjd/NAME` for every number.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        """Write below `folder`."""
        require("tensorboard", "tensorboard")
        self._writer = require("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """One point a number."""
        for name, number in numbers.items():
            self._writer.add_scalar(f"gramjd/{name}", number, step)

    def close(self) -> None:
        """Write what is waiting."""
        self._writer.close()
