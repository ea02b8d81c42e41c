"""Section b: what the device reaches at most, and every Triton kernel beside the torch form that it would replace."""

from __future__ import annotations

import math
from typing import Any

import torch

from gramjd.errors import GramjdError
from gramjd.kernels import calibrate
from gramjd.profiling.bench import kernels
from gramjd.profiling.bench.kernels import OPERATIONS, Case
from gramjd.profiling.gpu.box import Box
from gramjd.profiling.gpu.timer import milliseconds

# A kernel is worth taking if it is faster by this much in the mean, and slower by no more than the other anywhere.
GAIN, WORST = 1.1, 0.9
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TINY = {
    "outer.product": (1, 1, 5, 1, 3, 4),
    "outer.pairwise": (1, 1, 3, 5, 7, 2),
    "outer.rows": (1, 1, 3, 5, 7, 2),
    "cross.product": (1, 3, 4, 1, 5, 1, 3),
    "norms.pair": (1, 3, 4, 5, 6),
    "gathered.pairwise": (1, 3, 4, 5),
    "rows": (6, 11),
    "convolution.rows": (1, 3, 1, 3, 2, 3, 1, 4),
    "weighted.outer": (1, 1, 4, 2, 5, 3),
}


def run(box: Box) -> None:
    """Ceilings, the constants of the cost model, the kernels; then the list that "auto" should take."""
    box.note(ceilings=ceilings(box.device, 256 if box.dry else 8192))
    box.note(devices={box.device: _constants(box)})
    for case in box.within(cases(box.dry)):
        row = {"operation": case.operation, "shape": list(case.shape), "dtype": str(case.dtype).removeprefix("torch.")}
        box.attempt(row, lambda: _measured(case, box))  # noqa: B023
        box.note(auto=auto(box.found["rows"], _architecture(box.device)))


def _constants(box: Box) -> dict[str, object]:
    """The constants of the cost model; where passes disagree, what was said of it: the kernels are run all the same."""
    seconds, passes = (1e-3, 1) if box.dry else (0.1, calibrate.PASSES)
    try:
        return {
            name: calibrate.measure(box.device, dtype, seconds, passes)._asdict()
            for name, dtype in calibrate.DTYPES.items()
        }
    except GramjdError as error:
        return {"refused": str(error)}


def ceilings(device: str, size: int) -> dict[str, float]:
    """Bytes/s of a copy (read and written) and FLOP/s of a square product in float32, TF32 and bfloat16."""
    source = torch.randn(4 * size, size, device=device)
    target = torch.empty_like(source)
    found = {"bytes_per_s": 2e3 * source.nbytes / milliseconds(lambda: target.copy_(source), device)}
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, tf32 in (
        ("float32", "float32", False),
        ("tf32", "float32", True),
        ("bfloat16", "bfloat16", False),
    ):
        square = torch.randn(size, size, device=device).to(DTYPES[dtype])
        torch.backends.cuda.matmul.allow_tf32 = tf32
        taken = milliseconds(lambda: square @ square, device)  # noqa: B023
        found[f"flop_per_s_{name}"] = 2e3 * size**3 / taken
    torch.backends.cuda.matmul.allow_tf32 = before
    return found


def cases(dry: bool) -> list[Case]:
    """All kernels at their first shape, then all at their second: a cut leaves each with a figure."""
    if dry:
        return [Case(name, shape, torch.float32) for name, shape in TINY.items()]
    most = max(len(operation.shapes) for operation in OPERATIONS.values())
    return [
        Case(name, operation.shapes[place], dtype)
        for place in range(most)
        for name, operation in OPERATIONS.items()
        for dtype in DTYPES.values()
        if place < len(operation.shapes)
    ]


def _measured(case: Case, box: Box) -> dict[str, Any]:
    if box.dry:  # no kernel runs on a CPU: the torch form takes its part
        form = OPERATIONS[case.operation].torch_form
        given = kernels.operands(case, box.device)
        taken = milliseconds(lambda: form(*given), box.device, 0.0)
        return {"error": 0.0, "kernel_ms": taken, "torch_ms": taken, "speed_up": 1.0}
    error, limit = kernels.error(case, box.device), kernels.tolerance(case)
    if not error <= limit:  # a wrong kernel has no speed
        return {"failed": f"relative error {error:.1e}, allowed {limit:.0e}"}
    found = kernels.measure(case, box.device, lambda work: milliseconds(work, box.device))
    limits = box.found["ceilings"]
    name = str(case.dtype).removeprefix("torch.")
    return {
        "error": error,
        **found,
        "speed_up": found["torch_ms"] / found["kernel_ms"],
        "of_bytes": found["bytes_per_s"] / limits["bytes_per_s"],
        "of_flops": found["flop_per_s"] / limits[f"flop_per_s_{name}"],
    }


def auto(rows: list[dict[str, Any]], architecture: int) -> dict[str, Any]:
    """The operations whose kernel `backend="auto"` should take on this architecture, by what was measured.

    >>> rows = [{"operation": "rows", "speed_up": 2.0}, {"operation": "norms.pair", "speed_up": 0.5}]
    >>> auto(rows, 90)["kernels"]
    ['rows']
    """
    ratios: dict[str, list[float]] = {}
    for row in rows:
        # A kernel that failed once is not taken.
        ratios.setdefault(row["operation"], []).append(0.0 if row.get("failed") else row["speed_up"])
    means = {name: math.exp(sum(math.log(r) for r in of) / len(of)) if min(of) else 0.0 for name, of in ratios.items()}
    taken = sorted(name for name, mean in means.items() if mean >= GAIN and min(ratios[name]) >= WORST)
    return {"architecture": architecture, "kernels": taken, "mean": means, "gain": GAIN, "worst": WORST}


def _architecture(device: str) -> int:
    """Compute capability times ten; 0 on a CPU."""
    if device != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
