"""Check and time the GPU kernels against the torch expressions that they replace.

`python -m gramjd.profiling.bench kernels --json out.json`, on a machine with a GPU. Every case is first compared with
the same operation in float64, and nothing is timed unless all agree. Times are medians of `triton.testing.do_bench`.
`GB/s` and `TFLOP/s` are the bytes and operations that the operation needs at least (operands read once, the result
written once, one triangle of a symmetric result) over the kernel's time; in brackets, as a share of what a large copy
and a large matrix product reach on the same device.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gramjd.errors import BackendError
from gramjd.kernels import dispatch
from gramjd.kernels.symmetric import mirrored
from gramjd.profiling.bench.kernel_operations import NO_GRAMIANS, OPERATIONS, Form, accumulating, windowed
from gramjd.profiling.environment import describe, products_used

Timer = Callable[[Callable[[], object]], float]


class Case(NamedTuple):
    """An operation at one shape, on operands of one dtype."""

    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:  # noqa: D105
        return f"{self.operation} {'x'.join(map(str, self.shape))} {str(self.dtype).removeprefix('torch.')}"


def cases(dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> list[Case]:
    """Every operation at each of its shapes in each dtype."""
    return [Case(name, shape, dtype) for name, op in OPERATIONS.items() for shape in op.shapes for dtype in dtypes]


def operands(case: Case, device: str) -> tuple[Tensor, ...]:
    """Fresh random operands; weights stay float32, ids integer."""
    torch.manual_seed(0)
    made = [t.to(device) for t in OPERATIONS[case.operation].make(*case.shape)]
    return tuple(t.to(case.dtype) if t.is_floating_point() and t.ndim > 1 else t for t in made)


def kernel_of(operation: str) -> Form:
    """The kernel behind the dispatch table, with the signature of the torch form."""
    kernel = dispatch._function(dispatch.TABLE[operation, "cuda"])
    if operation == "weighted.outer":
        return kernel
    return accumulating(windowed(kernel) if operation == "convolution.rows" else kernel)


def tolerance(case: Case) -> float:
    """Relative error allowed: rounding of float32 sums, or of 16-bit results where the result has 16 bits."""
    return 2e-5 if case.operation != "weighted.outer" or case.dtype == torch.float32 else 2e-2


def error(case: Case, device: str) -> float:
    """Distance of the kernel's result from that of the torch form in float64, over the latter's norm."""
    given = operands(case, device)
    got = kernel_of(case.operation)(*given).double()
    exact = OPERATIONS[case.operation].torch_form(*(t.double() if t.is_floating_point() else t for t in given))
    if case.operation not in NO_GRAMIANS:  # of which the upper half counts
        got, exact = mirrored(got), mirrored(exact)
    return float((got - exact).norm() / exact.norm())


def measure(case: Case, device: str, timer: Timer) -> dict[str, Any]:
    """Milliseconds of the kernel and of the torch form, and the rates that the kernel's time amounts to."""
    given = operands(case, device)
    operation = OPERATIONS[case.operation]
    kernel = kernel_of(case.operation)
    ms = timer(lambda: kernel(*given))
    torch_ms = timer(lambda: operation.torch_form(*given))
    return {"kernel_ms": ms, "torch_ms": torch_ms, **rates(case, given, kernel(*given), ms)}


def rates(case: Case, given: tuple[Tensor, ...], result: Tensor, ms: float) -> dict[str, float]:
    """Bytes and operations that are needed at least, per second of a time in milliseconds."""
    moved = sum(t.nbytes for t in given) + result.nbytes
    work = OPERATIONS[case.operation].work(*case.shape)
    return {"bytes_per_s": 1e3 * moved / ms, "flop_per_s": 2e3 * work / ms}


def ceilings(device: str, timer: Timer, size: int = 8192) -> dict[str, float]:
    """Bytes/s of a large copy (read and written) and FLOP/s of a large matrix product in float32 and bfloat16."""
    source = torch.randn(4 * size, size, device=device)
    target = torch.empty_like(source)
    found = {"bytes_per_s": 2e3 * source.nbytes / timer(lambda: target.copy_(source))}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.randn(size, size, device=device).to(dtype)
        found[f"flop_per_s_{str(dtype).removeprefix('torch.')}"] = 2e3 * size**3 / timer(lambda: square @ square)  # noqa: B023
    return found


def require_right(found: dict[Case, float]) -> None:
    """Exit unless every error is within its tolerance: a wrong kernel has no speed."""
    wrong = [
        f"{case}: {value:.1e} > {tolerance(case):.0e}" for case, value in found.items() if not value <= tolerance(case)
    ]
    if wrong:
        sys.exit("nothing was timed, because these results are wrong:\n" + "\n".join(wrong))


def compare(chosen: list[Case], device: str, timer: Timer) -> dict[str, Any]:
    """Check all cases, then time them."""
    errors = {case: error(case, device) for case in chosen}
    require_right(errors)
    limits = ceilings(device, timer)
    results = []
    print(
        f"{'case':52} {'error':>8} {'kernel ms':>10} {'torch ms':>10} {'torch/kernel':>12} {'GB/s':>14} {'TFLOP/s':>14}"
    )
    for case in chosen:
        found = measure(case, device, timer)
        of_bytes = found["bytes_per_s"] / limits["bytes_per_s"]
        of_flops = found["flop_per_s"] / limits[f"flop_per_s_{str(case.dtype).removeprefix('torch.')}"]
        print(
            f"{case!s:52} {errors[case]:8.1e} {found['kernel_ms']:10.4f} {found['torch_ms']:10.4f}"
            f" {found['torch_ms'] / found['kernel_ms']:12.2f} {found['bytes_per_s'] / 1e9:7.0f} ({of_bytes:4.0%})"
            f" {found['flop_per_s'] / 1e12:7.1f} ({of_flops:4.0%})"
        )
        results.append({**case._asdict(), "dtype": str(case.dtype), "error": errors[case], **found})
    return {"ceilings": limits, "results": results, "speed_up": speed_up(results)}


def speed_up(results: list[dict[str, Any]]) -> dict[str, float]:
    """Geometric mean over the cases of an operation of torch's time over the kernel's.

    >>> speed_up([{"operation": "rows", "torch_ms": 2.0, "kernel_ms": 1.0}])
    {'rows': 2.0}
    """
    logs: dict[str, list[float]] = {}
    for row in results:
        logs.setdefault(row["operation"], []).append(math.log(row["torch_ms"] / row["kernel_ms"]))
    return {name: math.exp(sum(values) / len(values)) for name, values in logs.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument(
        "--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), help="which to measure"
    )


def run(args: argparse.Namespace) -> int:
    """Check, time, print, and write JSON if asked to."""
    if not torch.cuda.is_available():
        raise BackendError("this needs a CUDA device, and there is none here; the kernels are checked by the tests")
    import triton.testing

    def timer(function: Callable[[], object]) -> float:
        return float(triton.testing.do_bench(function, return_mode="median"))

    chosen = [case for case in cases() if case.operation in args.operations]
    facts = {"environment": describe(("torch", "triton", "gramjd"), "cuda"), "products": products_used()}
    found = {**facts, **compare(chosen, "cuda", timer)}
    for name, ratio in found["speed_up"].items():
        print(f"{name}: {ratio:.2f} times as fast as torch (geometric mean)")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0
