"""Memory and time of a step on one's own model, the benchmarks, and watching conflict during training."""

from gramjd.profiling.monitor import GramMonitor
from gramjd.profiling.step import Profile, profile_step
from gramjd.profiling.writers import CsvWriter, TensorBoardWriter

__all__ = ["CsvWriter", "GramMonitor", "Profile", "TensorBoardWriter", "profile_step"]
