"""Section b: what the device reaches at most, and every Triton kernel beside the torch form that it would replace."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gramjd.errors import GramjdError
from gramjd.kernels import calibrate, devices
from gramjd.kernels.devices import Constants, Measured
from gramjd.kernels.machine import this_cpu
from gramjd.profiling.bench import kernels
from gramjd.profiling.bench.kernels import OPERATIONS, Case
from gramjd.profiling.gpu.box import Box
from gramjd.profiling.gpu.timer import milliseconds

# A kernel is worth taking if it is so many times as fast as the torch form in the mean and nowhere slower than WORST
# allows, which is noise, and if it reaches this part of what the device can do where it has most to do.
GAIN, WORST, CEILING = 1.2, 0.9, 0.5
# The file beside the rows that `gramjd.kernels.cost.load` takes.
FILE = "devices.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TINY = {
    "outer.product": (1, 1, 5, 1, 3, 4),
    "outer.pairwise": (1, 1, 3, 5, 7, 2),
    "outer.rows": (1, 1, 3, 5, 7, 2),
    "cross.product": (1, 3, 4, 1, 5, 1, 3),
    "cross.pairwise": (1, 3, 4, 1, 3, 2, 1, 2, 3),
    "cross.rows": (1, 3, 4, 1, 3, 2, 1, 2, 3),
    "cross.gathered": (1, 3, 4, 1, 2, 5, 6),
    "segments.pairwise": (1, 3, 4, 2, 3, 2),
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
    chosen = cases(box.dry)
    architecture = devices.architecture(torch.device(box.device))
    for case in box.within(chosen):
        row = {"operation": case.operation, "shape": list(case.shape), "dtype": _short(case.dtype)}
        box.attempt(row, lambda: _measured(case, box))  # noqa: B023
        box.note(auto=auto(box.found["rows"], architecture, Counter(case.operation for case in chosen)))
        if not box.dry:  # constants of tiny sizes are of no use
            file = to_load(box.found, devices.this_gpu()).to_dict()
            (box.folder / FILE).write_text(json.dumps(file, indent=1) + "\n")


def to_load(found: Mapping[str, Any], gpu: str | None) -> Measured:
    """Constants and kernels of what a section has found, as `gramjd.kernels.cost.load` takes them."""
    known = {
        device: {name: Constants(**c) for name, c in of.items()}
        for device, of in found["devices"].items()
        if "refused" not in of
    }
    lists = {architecture: tuple(names) for architecture, names in found["auto"]["kernels"].items()}
    return Measured(this_cpu(), devices.shipped(this_cpu()).products, known, gpu, kernels=lists)


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
        ms = milliseconds(lambda: form(*given), box.device, 0.0)
        found = {"error": 0.0, "kernel_ms": ms, "torch_ms": ms, **kernels.rates(case, given, form(*given), ms)}
    else:
        error, limit = kernels.error(case, box.device), kernels.tolerance(case)
        if not error <= limit:  # a wrong kernel has no speed
            return {"failed": f"relative error {error:.1e}, allowed {limit:.0e}"}
        found = {"error": error, **kernels.measure(case, box.device, lambda work: milliseconds(work, box.device))}
    return found | _beside(found, box.found["ceilings"], _short(case.dtype))


def _beside(found: Mapping[str, float], limits: Mapping[str, float], dtype: str) -> dict[str, float]:
    """The kernel's time beside that of the torch form, and its rates beside the ceilings.

    `of_ceiling` is the least time, that of moving all bytes or of all operations, over the time that was taken.
    """
    of_bytes = found["bytes_per_s"] / limits["bytes_per_s"]
    of_flops = found["flop_per_s"] / limits[f"flop_per_s_{dtype}"]
    speed_up = found["torch_ms"] / found["kernel_ms"]
    return {"speed_up": speed_up, "of_bytes": of_bytes, "of_flops": of_flops, "of_ceiling": max(of_bytes, of_flops)}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def auto(rows: Sequence[Mapping[str, Any]], architecture: str, wanted: Mapping[str, int]) -> dict[str, Any]:
    """The operations whose kernel `backend="auto"` should take on this architecture, by what was measured.

    Args:
        rows: of the cases that were measured.
        architecture: such as `sm_90`; any other device has no list.
        wanted: how many cases there are per operation; one that was cut is not taken.

    >>> row = {"operation": "rows", "dtype": "float32", "speed_up": 2.0, "torch_ms": 1.0, "of_bytes": 0.7}
    >>> auto([row | {"of_flops": 0.1, "of_ceiling": 0.7}], "sm_90", {"rows": 1})["kernels"]
    {'sm_90': ['rows']}
    """
    of: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        of.setdefault(row["operation"], []).append(row)
    measured = {name: _summary(mine) | {"of": wanted[name]} for name, mine in of.items()}
    taken = sorted(name for name, found in measured.items() if _worth_it(found))
    listed = {architecture: taken} if architecture.startswith("sm_") else {}
    return {"kernels": listed, "measured": measured, "gain": GAIN, "worst": WORST, "ceiling": CEILING}


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The cases of one operation: mean and least ratio, and what is reached where most is to be done.

    Small cases last as long as a launch. So the longest case per dtype counts, of these the one that reaches least.
    """
    found: dict[str, float] = {"cases": len(rows), "failed": sum("failed" in row for row in rows)}
    right = [row for row in rows if "failed" not in row]
    if not right:
        return found
    ratios = [row["speed_up"] for row in right]
    found |= {"speed_up": math.exp(sum(map(math.log, ratios)) / len(ratios)), "least": min(ratios)}
    alike = ([row for row in right if row["dtype"] == dtype] for dtype in sorted({row["dtype"] for row in right}))
    longest = [max(mine, key=lambda row: row["torch_ms"]) for mine in alike]
    least = min(longest, key=lambda row: row["of_ceiling"])
    return found | {name: least[name] for name in ("of_bytes", "of_flops", "of_ceiling")}


def _worth_it(found: Mapping[str, float]) -> bool:
    if found["failed"] or found["cases"] < found["of"]:
        return False
    return found["speed_up"] >= GAIN and found["least"] >= WORST and found["of_ceiling"] >= CEILING
