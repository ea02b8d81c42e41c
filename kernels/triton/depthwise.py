"""Per-sample gradients of convolutions with small groups, such as depthwise ones, as sums and not as products.

    J_(k,n)[g, o, i, q] = sum_p c_(k,n)[g, o, p] x_n[g, i, p stride + q dilation - padding]

As a product of tiles, a group of one output and one input would fill a sixteenth of the rows and half of the columns.
Here a program takes several groups of one sample and goes through the numbers of J one by one, each a sum over pixels:
nothing is padded but the last pixels. The planes that it reads again for each number stay in the nearest cache. 16-bit
numbers are multiplied as float32, which is exact.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels.convolution import Window
from gramjd.kernels.triton import common
from gramjd.kernels.triton.common import Config, ceil_div

# Pixels that a program takes at a time, and pixels times groups.
PIXELS, ELEMENTS = (256, 128, 64, 32, 16), 1024
# Numbers of J of a group that fill a quarter of the smallest tile of products, 16 by 16.
MOST = 64


def suits(outputs: int, columns: int) -> bool:
    """Returns True if gradients [outputs, columns] of a group would leave most of a tile empty.

    >>> suits(1, 9), suits(4, 9), suits(16, 9)
    (True, True, False)
    """
    return outputs * columns <= MOST


def config_for(arch: int, groups: int, samples: int, numbers: int, pixels: int) -> Config:
    """Constants for `numbers` of J per sample and group, summed over `pixels`: the largest block that pads little.

    >>> config_for(90, 256, 32, 9, 784).constants
    {'GROUPS': 8, 'BLOCK_P': 128}
    """
    block_p = next((n for n in PIXELS if ceil_div(pixels, n) * n <= 1.15 * pixels), PIXELS[-1])
    step = min(ELEMENTS // block_p, triton.next_power_of_2(groups))
    splits = common.splits_for(arch, samples * ceil_div(groups, step), 2 * numbers)
    return Config({"GROUPS": step, "BLOCK_P": block_p}, num_warps=4, num_stages=2, splits=splits)


@triton.jit
def small_gradients(
    x, c, out, b, groups, O, I, Q, P, parts_of_work,
    H, W, OUT_W, KERNEL_W, STEP_H, STEP_W, PAD_H, PAD_W, SPREAD_H, SPREAD_W,
    stride_xb, stride_xg, stride_xi, stride_xh, stride_xw,
    stride_ck, stride_cb, stride_cg, stride_co, stride_ch, stride_cw,
    GROUPS: tl.constexpr, BLOCK_P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Part program_id(2) of the numbers [O, I, Q] of row program_id(0), for block program_id(1) of the groups."""
    n = tl.cast(tl.program_id(0) % b, tl.int64)
    k = tl.cast(tl.program_id(0) // b, tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    live_g = (group < groups)[:, None]
    x_rows = x + n * stride_xb + (group.to(tl.int64) * stride_xg)[:, None]
    c_rows = c + k * stride_ck + n * stride_cb + (group.to(tl.int64) * stride_cg)[:, None]
    numbers = O * I * Q
    out_rows = out + (tl.cast(tl.program_id(0), tl.int64) * groups + group) * numbers
    each = tl.cdiv(numbers, parts_of_work)
    first = tl.program_id(2) * each
    for number in range(first, tl.minimum(first + each, numbers)):
        down = number % Q // KERNEL_W * SPREAD_H - PAD_H
        along = number % Q % KERNEL_W * SPREAD_W - PAD_W
        x_plane = x_rows + tl.cast(number // Q % I, tl.int64) * stride_xi
        c_plane = c_rows + tl.cast(number // Q // I, tl.int64) * stride_co
        acc = tl.zeros([GROUPS, BLOCK_P], tl.float32)
        for start in range(0, P, BLOCK_P):
            p = start + tl.arange(0, BLOCK_P)
            top = p // OUT_W
            side = p % OUT_W
            h = top * STEP_H + down
            w = side * STEP_W + along
            inside = (p < P) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            at_c = (top.to(tl.int64) * stride_ch + side.to(tl.int64) * stride_cw)[None, :]
            at_x = (h.to(tl.int64) * stride_xh + w.to(tl.int64) * stride_xw)[None, :]
            left = tl.load(c_plane + at_c, mask=live_g & inside[None, :], other=0.0)
            right = tl.load(x_plane + at_x, mask=live_g & inside[None, :], other=0.0)
            acc += left.to(tl.float32) * right.to(tl.float32)
        tl.store(out_rows + number, tl.sum(acc, axis=1), mask=group < groups)


def chunk_of_rows(x: Tensor, c: Tensor, w: Window, config: Config | None = None) -> Tensor:
    """J [K b, groups o i q] of x [b, groups, i, h, w] and c [K, b, groups, o, h', w']."""
    (K, b, g, o, height, width), (i, h, across) = c.shape, x.shape[2:]
    q, P = w.kernel[0] * w.kernel[1], height * width
    config = config or config_for(common.arch_of(c), g, K * b, o * i * q, P)
    J = common.empty((K * b, g * o * i * q), c)
    sizes = (b, g, o, i, q, P, config.splits, h, across, width, w.kernel[1])
    arguments = [x, c, J, *sizes, *w.stride, *w.padding, *w.dilation, *x.stride(), *c.stride()]
    grid = (K * b, ceil_div(g, config.constants["GROUPS"]), config.splits)
    common.launch(small_gradients, grid, arguments, config)
    return J
