"""Memory and time of a step on one's own model, the benchmarks, and watching conflict during training."""

from typing import TYPE_CHECKING

from gramjd.lazy import attributes

if TYPE_CHECKING:
    from gramjd.profiling.monitor import GramMonitor
    from gramjd.profiling.step import Profile, profile_step
    from gramjd.profiling.writers import CsvWriter, FunctionWriter, TensorBoardWriter

__all__ = ["CsvWriter", "FunctionWriter", "GramMonitor", "Profile", "TensorBoardWriter", "profile_step"]

_HOMES = {
    "CsvWriter": "gramjd.profiling.writers",
    "FunctionWriter": "gramjd.profiling.writers",
    "GramMonitor": "gramjd.profiling.monitor",
    "Profile": "gramjd.profiling.step",
    "TensorBoardWriter": "gramjd.profiling.writers",
    "profile_step": "gramjd.profiling.step",
}

if not TYPE_CHECKING:  # a type checker would take any name for granted
    __getattr__, __dir__ = attributes(__name__, _HOMES, {"monitor_figures": "gramjd.profiling.monitor_figures"})
