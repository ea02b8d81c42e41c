"""Where a monitor's numbers go: a CSV file, TensorBoard, or any function that logs a dictionary of floats.

with CsvWriter("conflict.csv") as log:
    log.write(step, monitor.latest())
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from gramjd.errors import InputError
from gramjd.extras import require


class Writer:
    """What all writers share: they are closed at the end of a `with` block."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a step."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is waiting."""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class CsvWriter(Writer):
    """A line per step, flushed at once: what is there survives a crash.

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
        """One line; the first decides the columns. A number that is missing later is left empty.

        Raises:
            InputError: a number that the first line had not.
        """
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, ["step", *numbers], lineterminator="\n")
            self._writer.writeheader()
        new = [name for name in numbers if name not in self._writer.fieldnames]
        if new:
            raise InputError(
                f"the first line has no column for {', '.join(new)}: a monitor that is told the names of all losses, "
                "GramMonitor(names=[...]), gives the same numbers in every step"
            )
        self._writer.writerow({"step": step, **numbers})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardWriter(Writer):
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


class FunctionWriter(Writer):
    """Hands `{"gramjd/NAME": number}` to a function with the number of the step: `log(numbers, step=step)`.

    For `wandb.log`, `mlflow.log_metrics`, a `Fabric`'s `log_dict`, or a function of your own.

    >>> FunctionWriter(lambda numbers, step: print(step, numbers)).write(3, {"mean_norm": 0.5})
    3 {'gramjd/mean_norm': 0.5}
    """

    def __init__(self, log: Callable[..., object], prefix: str = "gramjd/") -> None:
        """Write to `log`; names begin with `prefix`."""
        if not callable(log):
            raise InputError(f"log is a {type(log).__name__}; expected a function of (numbers, step=)")
        self._log, self._prefix = log, prefix

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """One call."""
        self._log({f"{self._prefix}{name}": number for name, number in numbers.items()}, step=step)
