"""`gramjd calibrate`: measure the constants that choose routes, in seconds, and write them to a file.

    gramjd calibrate                          # the CPU, and a GPU if there is one
    gramjd calibrate --output devices.json

They are used after `gramjd.kernels.cost.load()`, or `load(path)`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from gramjd import arguments
from gramjd.kernels import cost, products

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# A large product, and Gram matrices of few long rows: how fast products are, and how much slower narrow ones.
LARGE = 512
SMALL = (8, 16, 32, 64)
# Seconds of a timed piece at least, for the clock's sake.
PIECE = 5e-4


add_arguments = arguments.calibrate


def run(args: argparse.Namespace) -> int:
    """Measure, write, print."""
    devices = args.device or ["cpu", *["cuda"] * torch.cuda.is_available()]
    found = {device: {name: measure(device, dtype) for name, dtype in DTYPES.items()} for device in devices}
    path = args.output or cost.user_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {device: {name: c._asdict() for name, c in of.items()} for device, of in found.items()}
    path.write_text(json.dumps({"devices": plain}, indent=1) + "\n")
    for device, of in found.items():
        for name, c in of.items():
            rates = f"{c.flops / 1e9:.0f} Gflop/s, half of it at size {c.half:.1f}, {c.elements / 1e9:.2f} G elements/s"
            other = f"; by oneDNN {c.onednn_flops / 1e9:.0f} Gflop/s, {c.onednn_call * 1e6:.1f} us a call"
            print(f"{device} {name}: {rates}, {c.call * 1e6:.1f} us a call{other if c.onednn_flops else ''}")
    print(f"wrote {path}")
    return 0


def measure(device: str, dtype: torch.dtype, seconds: float = 0.2) -> cost.Constants:
    """The constants; each measurement takes about `seconds`."""

    def clock(step: Callable[[], object]) -> float:
        """The least time of a call: whatever else the machine does only adds to it."""
        step()
        _wait(device)
        times: list[float] = []
        calls, start = 1, time.perf_counter()
        while time.perf_counter() - start < seconds or len(times) < 5:
            begin = time.perf_counter()
            for _ in range(calls):
                step()
            _wait(device)
            taken = time.perf_counter() - begin
            times.append(taken / calls)
            calls = calls if taken > PIECE else 2 * calls
        return min(times)

    def rate(M: int, N: int, K: int) -> float:
        left, right = (torch.ones(shape, dtype=dtype, device=device) for shape in ((M, K), (K, N)))
        out = torch.empty(M, N, dtype=dtype, device=device)
        return 2 * M * N * K / clock(lambda: torch.mm(left, right, out=out))

    size = LARGE if device == "cpu" else 8 * LARGE
    flops = rate(size, size, size)
    # rate = flops / (1 + half/n)^2 for a Gram matrix of n long rows
    half = statistics.median(n * max(0.0, (flops / rate(n, n, 16 * size)) ** 0.5 - 1) for n in SMALL)
    strip = torch.ones(cost.SLAB // 2 if device == "cpu" else 64 * cost.SLAB, dtype=dtype, device=device)
    dot = torch.ones(4, 4, dtype=dtype, device=device)
    constants = cost.Constants(
        flops=flops * (1 + half / size) ** 3,
        half=half,
        elements=strip.numel() / clock(lambda: strip.mul_(strip)),
        call=clock(lambda: torch.mm(dot, dot)),
    )
    if device != "cpu" or dtype != torch.float32 or products.library() != "onednn":
        return constants
    square = torch.ones(size, size)
    call = clock(lambda: products.by_onednn(dot, dot))
    taken = clock(lambda: products.by_onednn(square, square))
    return constants._replace(onednn_flops=2 * size**3 / (taken - call), onednn_call=call)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
