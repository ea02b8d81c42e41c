"""The benchmarks of this repository, the tables and the figures made from their results; not part of a wheel.

python -m gramjd.profiling.bench --help
"""
