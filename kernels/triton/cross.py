"""Inner products between rows of two factors of one parameter that have one position each: a rectangle with split sums.

    X[(k,n), (l,m)] = sum over g of (c_kn . c2_lm) (x_n . x2_m)

As in `symmetric`, `rectangle` spreads the sums over o, and over i, over many programs, and `finish_rectangle` adds the
partial sums in a fixed order, multiplies and adds up the groups. 2 b b2 i + 2 R R2 o operations per group; a row of the
one factor is read once for each BLOCK_R2 rows of the other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels.triton import common, symmetric
from gramjd.kernels.triton.common import Config, ceil_div, inner_tile, row_offset
from gramjd.kernels.triton.sums import FINISH, added


def config_for(arch: int, dtype: torch.dtype, R: int, R2: int, D: int, groups: int = 1) -> Config:
    """Constants of `rectangle` for R by R2 inner products of D numbers, split until they fill the device.

    >>> config_for(90, torch.float32, 32, 16, 4096).constants
    {'BLOCK_R': 32, 'BLOCK_R2': 16, 'BLOCK_D': 32}
    """
    block_r, block_r2 = (16 if n <= 16 else 32 if n <= 32 else 64 for n in (R, R2))
    block_d = 32 if dtype == torch.float32 else 64
    splits = common.splits_for(arch, groups * ceil_div(R, block_r) * ceil_div(R2, block_r2), ceil_div(D, block_d))
    constants = {"BLOCK_R": block_r, "BLOCK_R2": block_r2, "BLOCK_D": block_d}
    return Config(constants, num_warps=8 if block_r * block_r2 > 1024 else 4, num_stages=3, splits=splits)


@triton.jit
def store(out, tile, row, column, R, R2):
    """`tile` into out [R, R2]."""
    at = row.to(tl.int64)[:, None] * R2 + column.to(tl.int64)[None, :]
    tl.store(out + at, tile, mask=(row < R)[:, None] & (column < R2)[None, :])


@triton.jit
def rectangle(
    c, c2, x, x2, sums_c, sums_x, R, R2, b, b2, O, I, groups, splits_c, size_c, size_x,
    stride_ck, stride_cg, stride_cb, stride_co, stride_c2k, stride_c2g, stride_c2b, stride_c2o,
    stride_xg, stride_xb, stride_xi, stride_x2g, stride_x2b, stride_x2i,
    BLOCK_R: tl.constexpr, BLOCK_R2: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tile (program_id(1), program_id(2)) of one group's C C2^T, or X X2^T, over one part of its sum."""
    group = tl.cast(tl.program_id(0) % groups, tl.int64)
    part = tl.program_id(0) // groups
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(2) * BLOCK_R2 + tl.arange(0, BLOCK_R2)
    if part < splits_c:
        left = c + group * stride_cg + row_offset(row, b, stride_ck, stride_cb)
        right = c2 + group * stride_c2g + row_offset(column, b2, stride_c2k, stride_c2b)
        lo = part * size_c
        hi = tl.minimum(lo + size_c, O)
        tile = inner_tile(left, row < R, stride_co, right, column < R2, stride_c2o, lo, hi, BLOCK_D, WHOLE, UPCAST)
        store(sums_c + (part * groups + group) * R * R2, tile, row, column, R, R2)
    elif (tl.program_id(1) * BLOCK_R < b) & (tl.program_id(2) * BLOCK_R2 < b2):
        part -= splits_c
        left = x + group * stride_xg + row.to(tl.int64) * stride_xb
        right = x2 + group * stride_x2g + column.to(tl.int64) * stride_x2b
        lo = part * size_x
        hi = tl.minimum(lo + size_x, I)
        tile = inner_tile(left, row < b, stride_xi, right, column < b2, stride_x2i, lo, hi, BLOCK_D, WHOLE, UPCAST)
        store(sums_x + (part * groups + group) * b * b2, tile, row, column, b, b2)


@triton.jit
def finish_rectangle(
    out, sums_c, sums_x, R, R2, b, b2, groups, splits_c, splits_x,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tile of the result from the partial sums."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    r = row.to(tl.int64)[:, None]
    s = column.to(tl.int64)[None, :]
    live = (r < R) & (s < R2)
    of_c = tl.cast(R, tl.int64) * R2
    of_x = tl.cast(b, tl.int64) * b2
    tile = tl.zeros([BLOCK, BLOCK], tl.float32)
    for group in range(groups):
        outputs = added(sums_c + group * of_c, r, s, R2, splits_c, groups * of_c, live, SPLITS)
        tile += outputs * added(sums_x + group * of_x, r % b, s % b2, b2, splits_x, groups * of_x, live, SPLITS)
    store(out, tile, row, column, R, R2)


def product(x: Tensor, c: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype, config: Config | None = None) -> Tensor:
    """`sum_g (C C2^T) * (X X2^T)` [K b, K2 b2], in `dtype` from sums in float32.

    Args:
        x, c: [g, b, 1, i] and [K, g, b, 1, o].
        x2, c2: [g, b2, 1, i] and [K2, g, b2, 1, o].
        dtype: of the result.
        config: instead of `config_for`.
    """
    (K, g, b, _, o), (K2, _, b2, *_), i = c.shape, c2.shape, x.shape[-1]
    R, R2 = K * b, K2 * b2
    out = common.empty((R, R2), c)
    if 0 in (R, R2, g, o, i):
        return out.zero_().to(dtype)
    config = config or config_for(common.arch_of(c), c.dtype, R, R2, max(o, i), g)
    block = config.constants
    (size_c, splits_c), (size_x, splits_x) = (symmetric.parts(length, config) for length in (o, i))
    sums_c, sums_x = common.empty((splits_c, g, R, R2), c), common.empty((splits_x, g, b, b2), c)
    strides = [t.stride(place) for t in (c, c2) for place in (0, 1, 2, 4)]
    strides += [t.stride(place) for t in (x, x2) for place in (0, 1, 3)]
    arguments = [c, c2, x, x2, sums_c, sums_x, R, R2, b, b2, o, i, g, splits_c, size_c, size_x, *strides]
    grid = ((splits_c + splits_x) * g, ceil_div(R, block["BLOCK_R"]), ceil_div(R2, block["BLOCK_R2"]))
    mixed = c.dtype != c2.dtype or x.dtype != x2.dtype
    common.launch(rectangle, grid, arguments, config, WHOLE=(o | i) % block["BLOCK_D"] == 0, UPCAST=mixed)
    tiles = ceil_div(R, FINISH.constants["BLOCK"]), ceil_div(R2, FINISH.constants["BLOCK"])
    common.launch(finish_rectangle, tiles, [out, sums_c, sums_x, R, R2, b, b2, g, splits_c, splits_x], FINISH)
    return out.to(dtype)
