"""Memory and time of a step, the benchmarks, and the tables made of their results."""
