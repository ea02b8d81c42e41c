"""Memory and time of a step on one's own model, the benchmarks, and watching conflict during training."""

from gramjd.profiling.step import Profile, profile_step

__all__ = ["Profile", "profile_step"]
