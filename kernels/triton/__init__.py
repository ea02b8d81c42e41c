"""Triton kernels for the Gramian operations; reached through `gramjd.kernels.dispatch`, which imports them when used.

Every kernel accumulates in float32 whatever its inputs are, without TF32, adds up in a fixed order (no atomics), and
returns an exactly symmetric G. float64 is left to torch. They are compiled for sm_80, sm_90 and sm_100 and run by
Triton's interpreter in the tests; `python -m gramjd.profiling.bench kernels` checks and times them on a GPU.
"""
