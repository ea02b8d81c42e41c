"""`python -m gramjd.profiling.bench NAME`: every benchmark, and the tables made from their results."""

from gramjd.cli import Command, main

HERE = "gramjd.profiling.bench"
BENCHMARKS = (
    Command("step", "time and memory of a step, as gramjd bench measures it", f"{HERE}.command"),
    Command("memory", "peak memory of a step against the number of losses", f"{HERE}.memory"),
    Command("growth", "time of a Gramian against losses, width and positions", f"{HERE}.growth"),
    Command("compiled", "steps compiled and not, over the plain eager step", f"{HERE}.compiled"),
    Command("few", "few task losses: a step beside m plain passes and TorchJD", f"{HERE}.few"),
    Command("foreign", "models that others wrote: a step beside m plain passes and TorchJD", f"{HERE}.foreign"),
    Command("sweep", "architectures of timm and transformers: right, dense rows, time", f"{HERE}.sweep"),
    Command("ranks", "several ranks: bytes, time and memory over the plain wrapped step", f"{HERE}.ranks"),
    Command("weights", "weightings beside TorchJD's and one eigh", f"{HERE}.weights"),
    Command("routes", "every route of an outer product against what the cost model chooses", f"{HERE}.routes"),
    Command("kernels", "the GPU kernels against the torch expressions that they replace", f"{HERE}.kernels"),
    Command("tables", "write the tables and figures of the pages again, from the results", f"{HERE}.tables"),
)

if __name__ == "__main__":
    raise SystemExit(main(commands=BENCHMARKS, program=f"python -m {HERE}"))
