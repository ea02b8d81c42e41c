"""`gramjd calibrate`: measure the constants that choose routes, in seconds, and write them to a file.

    gramjd calibrate                          # the CPU, and a GPU if there is one
    gramjd calibrate --output devices.json

They are used after `gramjd.kernels.cost.load()`, or `load(path)`, on this kind of CPU. The file also states which
library computes large float32 products: oneDNN where it was `MARGIN` times as fast as PyTorch's own choice. A file that
is written over keeps its lists of kernels, which are not measured here.

Everything is measured in `PASSES` passes, of which the best counts. Nothing is written where two passes differ by more
than a factor of `AGREE`, or where one number is implausible beside another: the machine is busy then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from gramjd import arguments
from gramjd.errors import GramjdError
from gramjd.kernels import cost, devices, products
from gramjd.kernels.devices import Constants, Measured
from gramjd.kernels.machine import this_cpu

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# A large product, and Gram matrices of few long rows: how fast products are, and how much slower narrow ones.
LARGE = 512
SMALL = (8, 16, 32, 64)
# Seconds of a timed piece at least, for the clock's sake.
PIECE = 5e-4
# Passes; the factor by which two of them may differ; how much faster oneDNN has to be to be stated.
PASSES, AGREE, MARGIN = 3, 1.25, 1.25
# Bounds of one number over another.
PLAUSIBLE = {
    "operations per second in float64 over those in float32": (1 / 128, 1.5),
    "elements moved per second in float64 over those in float32": (1 / 8, 1.5),
    "a call in float64 over one in float32": (1 / 8, 8.0),
    "operations per second over elements moved per second": (0.1, 1e6),
    "the size that halves the rate over that of the large product": (0.0, 1.0),
    "operations per second by oneDNN over those by PyTorch": (1 / 16, 16.0),
}
# Seconds per timed piece, by name.
Timings = Mapping[str, float]


add_arguments = arguments.calibrate


def run(args: argparse.Namespace) -> int:
    """Measure, write, print."""
    kinds = args.device or ["cpu", *["cuda"] * torch.cuda.is_available()]
    found = {kind: {name: measure(kind, dtype) for name, dtype in DTYPES.items()} for kind in kinds}
    for kind, of in found.items():
        check_plausible(kind, of)
    path = args.output or cost.user_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    gpu = devices.this_gpu() if "cuda" in kinds else None
    written = Measured(this_cpu(), faster(found), found, gpu, kernels=_kernels_in(path))
    path.write_text(json.dumps(written.to_dict(), indent=1) + "\n")
    for kind, of in found.items():
        for name, c in of.items():
            rates = f"{c.flops / 1e9:.0f} Gflop/s, half of it at size {c.half:.1f}, {c.elements / 1e9:.2f} G elements/s"
            other = f"; by oneDNN {c.onednn_flops / 1e9:.0f} Gflop/s, {c.onednn_call * 1e6:.1f} us per call"
            print(f"{kind} {name}: {rates}, {c.call * 1e6:.1f} us per call{other if c.onednn_flops else ''}")
    print(f"large float32 products: {'oneDNN' if written.products == 'onednn' else 'PyTorch'}; CPU: {written.cpu}")
    print(f"wrote {path}")
    return 0


def _kernels_in(path: Path) -> devices.Kernels:
    """The kernels that a file lists which is about to be written over; none where it is no file of this form."""
    try:
        return devices.read(path).kernels
    except GramjdError:
        return {}


def faster(found: devices.Table) -> str:
    """`"onednn"` if it is `MARGIN` times as fast as PyTorch's own products, else `"torch"`.

    Where the CPU was not measured: what `devices.json` says of it.
    """
    if "cpu" not in found:
        return devices.shipped(this_cpu()).products
    known = found["cpu"]["float32"]
    return "onednn" if known.onednn_flops >= MARGIN * known.flops else "torch"


def measure(device: str, dtype: torch.dtype, seconds: float = 0.2, passes: int = PASSES) -> Constants:
    """The constants, from the best of `passes`; each of some nine timings takes about `seconds`.

    Raises:
        GramjdError: two passes differ by more than a factor of `AGREE`.
    """
    taken = [time_all(device, dtype, seconds) for _ in range(passes)]
    return constants(best(taken, f"{device} {str(dtype).removeprefix('torch.')}"), device)


def best(passes: Sequence[Timings], what: str) -> Timings:
    """The least time of every piece.

    Raises:
        GramjdError: two passes differ by more than a factor of `AGREE`.

    >>> best([{"a call": 1.6e-6}, {"a call": 1.5e-6}], "cpu float32")
    {'a call': 1.5e-06}
    """
    for name in passes[0]:
        times = [timings[name] for timings in passes]
        if max(times) > AGREE * min(times):
            raise GramjdError(
                f"two passes disagree: {what}, {name}: {1e6 * min(times):.3g} and {1e6 * max(times):.3g} us, a factor "
                f"of {max(times) / min(times):.2f}, and {AGREE} is allowed. The machine is busy: run this again when "
                "it is idle. Nothing was written"
            )
    return {name: min(timings[name] for timings in passes) for name in passes[0]}


def check_plausible(device: str, of: Mapping[str, Constants]) -> None:
    """Check that the ratios of the numbers lie within `PLAUSIBLE`.

    Raises:
        GramjdError: one does not.
    """
    for name, ratio in _ratios(device, of):
        low, high = PLAUSIBLE[name]
        if not low <= ratio <= high:
            raise GramjdError(
                f"implausible on {device}: {name} is {ratio:.3g}, expected {low:.3g} to {high:.3g}. The machine is "
                "busy: run this again when it is idle. Nothing was written"
            )


def _ratios(device: str, of: Mapping[str, Constants]) -> Iterator[tuple[str, float]]:
    names = list(PLAUSIBLE)
    single, double = of["float32"], of["float64"]
    yield names[0], double.flops / single.flops
    yield names[1], double.elements / single.elements
    yield names[2], double.call / single.call
    for known in of.values():
        yield names[3], known.flops / known.elements
        yield names[4], known.half / size_for(device)
        if known.onednn_flops:
            yield names[5], known.onednn_flops / known.flops


def size_for(device: str) -> int:
    """Rows and columns of the matrices of a large product."""
    return LARGE if device == "cpu" else 8 * LARGE


def moved(device: str) -> int:
    """Elements that are moved through memory in the timed piece."""
    return cost.CHUNK // 2 if device == "cpu" else 64 * cost.CHUNK


def time_all(device: str, dtype: torch.dtype, seconds: float) -> Timings:
    """One pass: seconds of each piece that `constants` needs."""

    def clock(step: Callable[[], object]) -> float:
        return least_time(step, device, seconds)

    def mm(n: int, K: int) -> float:
        left, right = (torch.ones(shape, dtype=dtype, device=device) for shape in ((n, K), (K, n)))
        out = torch.empty(n, n, dtype=dtype, device=device)
        return clock(lambda: torch.mm(left, right, out=out))

    size = size_for(device)
    strip, dot = (torch.ones(shape, dtype=dtype, device=device) for shape in ((moved(device),), (4, 4)))
    found = {"a large product": mm(size, size)}
    found |= {f"a product of {n} long rows": mm(n, 16 * size) for n in SMALL}
    found |= {"moving elements": clock(lambda: strip.mul_(strip)), "a call": clock(lambda: torch.mm(dot, dot))}
    if device == "cpu" and dtype == torch.float32 and products.onednn_works():
        square = torch.ones(size, size)
        found["a call of oneDNN"] = clock(lambda: products.by_onednn(dot, dot))
        found["a large product by oneDNN"] = clock(lambda: products.by_onednn(square, square))
    return found


def constants(seconds: Timings, device: str) -> Constants:
    """The constants that explain the timings, by the formula of `cost`."""
    size = size_for(device)
    flops = 2 * size**3 / seconds["a large product"]

    def halving(n: int) -> float:
        """From rate = flops / (1 + half/n)^2 for a Gram matrix of n long rows."""
        rate = 2 * n * n * 16 * size / seconds[f"a product of {n} long rows"]
        return n * max(0.0, float((flops / rate) ** 0.5) - 1)

    half = statistics.median(halving(n) for n in SMALL)
    found = Constants(
        flops=flops * (1 + half / size) ** 3,
        half=half,
        elements=moved(device) / seconds["moving elements"],
        call=seconds["a call"],
    )
    if "a call of oneDNN" not in seconds:
        return found
    call = seconds["a call of oneDNN"]
    rate = 2 * size**3 / max(seconds["a large product by oneDNN"] - call, 1e-12)
    return found._replace(onednn_flops=rate, onednn_call=call)


def least_time(step: Callable[[], object], device: str, seconds: float) -> float:
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


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
