"""What the kernels have in common: the tile of a Gram matrix, mirrored stores, launching."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Multiprocessors of the data-centre chip of each architecture; 0 stands for the interpreter, where programs are dear.
MULTIPROCESSORS = {0: 1, 80: 108, 90: 132, 100: 148}
# Partial sums of one result: enough to fill a device, few enough to be added up in a few loads.
MOST_SPLITS = 64


class Config(NamedTuple):
    """How a kernel is compiled and launched: its constants, and the number of programs that a sum is spread over."""

    constants: dict[str, int]
    num_warps: int
    num_stages: int
    splits: int = 1


def ceil_div(a: int, b: int) -> int:
    """Smallest integer of at least a / b.

    >>> ceil_div(7, 3)
    3
    """
    return -(-a // b)


def multiprocessors(arch: int) -> int:
    """Multiprocessors of `arch`, or of the nearest older one in `MULTIPROCESSORS`.

    >>> multiprocessors(90), multiprocessors(103)
    (132, 148)
    """
    return MULTIPROCESSORS[max(known for known in MULTIPROCESSORS if known <= arch)]


def splits_for(arch: int, programs: int, steps: int) -> int:
    """Programs that a sum of `steps` loop steps is spread over, so that all programs fill the device twice.

    >>> splits_for(90, 1, 1000), splits_for(90, 300, 1000), splits_for(90, 1, 6)
    (64, 1, 3)
    """
    wanted = 2 * multiprocessors(arch) // max(1, programs)
    return max(1, min(wanted, MOST_SPLITS, steps // 2))


def arch_of(tensor: Tensor) -> int:
    """Compute capability times ten of the tensor's device; 0 on a CPU."""
    if tensor.device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Unwritten float32 on the device of `like`: every result and every partial sum comes from here."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def is_interpreted(kernel: Any) -> bool:
    """Returns True if Triton's interpreter runs the kernel."""
    return not isinstance(kernel, triton.runtime.JITFunction)


def launch(kernel: Any, grid: tuple[int, ...], arguments: list[Any], config: Config, **constants: Any) -> None:
    """Start `kernel` on the device of its first argument. The interpreter needs 16-bit floats upcast."""
    upcast = constants.pop("UPCAST", False) or is_interpreted(kernel)
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](
            *arguments,
            **config.constants,
            **constants,
            UPCAST=upcast,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )


@triton.jit
def exact_dot(a, b, acc, UPCAST: tl.constexpr):
    """`acc + a b` in float32: products of 16-bit floats are exact on tensor cores, those of float32 avoid TF32."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def inner_tile(
    a, live_a, stride_a, b, live_b, stride_b, lo, hi,
    BLOCK_D: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sum over d in [lo, hi) of a_r[d] b_s[d], for pointers a [P], b [Q] to rows; WHOLE: BLOCK_D divides hi - lo."""
    acc = tl.zeros([a.shape[0], b.shape[0]], tl.float32)
    for start in range(lo, hi, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        at_a = d.to(tl.int64) * stride_a
        at_b = d.to(tl.int64) * stride_b
        mask_a = live_a[:, None]
        mask_b = live_b[None, :]
        if not WHOLE:
            mask_a = mask_a & (d < hi)[None, :]
            mask_b = mask_b & (d < hi)[:, None]
        left = tl.load(a[:, None] + at_a[None, :], mask=mask_a, other=0.0)
        right = tl.load(b[None, :] + at_b[:, None], mask=mask_b, other=0.0)
        acc = exact_dot(left, right, acc, UPCAST)
    return acc


@triton.jit
def gram_tile(a, live_a, b, live_b, lo, hi, stride, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr):
    """`inner_tile` of rows of one tensor."""
    return inner_tile(a, live_a, stride, b, live_b, stride, lo, hi, BLOCK_D, WHOLE, UPCAST)


@triton.jit
def row_offset(row, b, stride_k, stride_b):
    """The offset of row (k, n) = k b + n."""
    return (row // b).to(tl.int64) * stride_k + (row % b).to(tl.int64) * stride_b


@triton.jit
def store_symmetric(out, tile, row, column, R):
    """Store the part of `tile` on and above the diagonal in out [R, R], and its mirror image below."""
    r = row.to(tl.int64)[:, None]
    s = column.to(tl.int64)[None, :]
    live = (r <= s) & (s < R)
    tl.store(out + r * R + s, tile, mask=live)
    tl.store(out + s * R + r, tile, mask=live)
