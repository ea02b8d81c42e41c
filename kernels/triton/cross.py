"""Inner products between rows of two factors of one parameter that have one position each: a rectangle with split sums.

    X[(k,n), (l,m)] = sum over g of (c_kn . c'_lm) (x_n . x'_m)

As in `symmetric`, `rectangle` spreads the sums over o, and over i, over many programs, and `finish_rectangle` adds the
partial sums in a fixed order, multiplies and adds up the groups. 2 b b' i + 2 R R' o operations a group; a row of the
one factor is read once for each BLOCK_S rows of the other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels.triton import common, symmetric
from gramjd.kernels.triton.common import Config, ceil_div, inner_tile, row_offset
from gramjd.kernels.triton.sums import FINISH, added


def config_for(arch: int, dtype: torch.dtype, R: int, S: int, D: int, groups: int = 1) -> Config:
    """Constants of `rectangle` for R by S inner products of D numbers, split until they fill the device.

    >>> config_for(90, torch.float32, 32, 16, 4096).constants
    {'BLOCK_R': 32, 'BLOCK_S': 16, 'BLOCK_D': 32}
    """
    block_r, block_s = (16 if n <= 16 else 32 if n <= 32 else 64 for n in (R, S))
    block_d = 32 if dtype == torch.float32 else 64
    splits = common.splits_for(arch, groups * ceil_div(R, block_r) * ceil_div(S, block_s), ceil_div(D, block_d))
    constants = {"BLOCK_R": block_r, "BLOCK_S": block_s, "BLOCK_D": block_d}
    return Config(constants, num_warps=8 if block_r * block_s > 1024 else 4, num_stages=3, splits=splits)


@triton.jit
def store(out, tile, row, column, R, S):
    """`tile` into out [R, S]."""
    at = row.to(tl.int64)[:, None] * S + column.to(tl.int64)[None, :]
    tl.store(out + at, tile, mask=(row < R)[:, None] & (column < S)[None, :])


@triton.jit
def rectangle(
    c, d, x, y, sums_c, sums_x, R, S, b, n, O, I, groups, splits_c, size_c, size_x,
    stride_ck, stride_cg, stride_cb, stride_co, stride_dk, stride_dg, stride_db, stride_do,
    stride_xg, stride_xb, stride_xi, stride_yg, stride_yb, stride_yi,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tile (1, 2) of one group's C D^T, or X Y^T, over one part of its sum."""
    group = tl.cast(tl.program_id(0) % groups, tl.int64)
    part = tl.program_id(0) // groups
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(2) * BLOCK_S + tl.arange(0, BLOCK_S)
    if part < splits_c:
        left = c + group * stride_cg + row_offset(row, b, stride_ck, stride_cb)
        right = d + group * stride_dg + row_offset(column, n, stride_dk, stride_db)
        lo = part * size_c
        hi = tl.minimum(lo + size_c, O)
        tile = inner_tile(left, row < R, stride_co, right, column < S, stride_do, lo, hi, BLOCK_D, WHOLE, UPCAST)
        store(sums_c + (part * groups + group) * R * S, tile, row, column, R, S)
    elif (tl.program_id(1) * BLOCK_R < b) & (tl.program_id(2) * BLOCK_S < n):
        part -= splits_c
        left = x + group * stride_xg + row.to(tl.int64) * stride_xb
        right = y + group * stride_yg + column.to(tl.int64) * stride_yb
        lo = part * size_x
        hi = tl.minimum(lo + size_x, I)
        tile = inner_tile(left, row < b, stride_xi, right, column < n, stride_yi, lo, hi, BLOCK_D, WHOLE, UPCAST)
        store(sums_x + (part * groups + group) * b * n, tile, row, column, b, n)


@triton.jit
def finish_rectangle(
    out, sums_c, sums_x, R, S, b, n, groups, splits_c, splits_x,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tile of the result from the partial sums."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    r = row.to(tl.int64)[:, None]
    s = column.to(tl.int64)[None, :]
    live = (r < R) & (s < S)
    of_c = tl.cast(R, tl.int64) * S
    of_x = tl.cast(b, tl.int64) * n
    tile = tl.zeros([BLOCK, BLOCK], tl.float32)
    for group in range(groups):
        outputs = added(sums_c + group * of_c, r, s, S, splits_c, groups * of_c, live, SPLITS)
        tile += outputs * added(sums_x + group * of_x, r % b, s % n, n, splits_x, groups * of_x, live, SPLITS)
    store(out, tile, row, column, R, S)


def product(x: Tensor, c: Tensor, y: Tensor, d: Tensor, dtype: torch.dtype, config: Config | None = None) -> Tensor:
    """`sum_g (C D^T) * (X Y^T)` [K b, L n], in `dtype` from sums in float32.

    Args:
        x, c: [g, b, 1, i] and [K, g, b, 1, o].
        y, d: [g, n, 1, i] and [L, g, n, 1, o].
        dtype: of the result.
        config: instead of `config_for`.
    """
    (K, g, b, _, o), (L, _, n, *_), i = c.shape, d.shape, x.shape[-1]
    R, S = K * b, L * n
    out = common.empty((R, S), c)
    if 0 in (R, S, g, o, i):
        return out.zero_().to(dtype)
    config = config or config_for(common.arch_of(c), c.dtype, R, S, max(o, i), g)
    block = config.constants
    (size_c, splits_c), (size_x, splits_x) = (symmetric.parts(length, config) for length in (o, i))
    sums_c, sums_x = common.empty((splits_c, g, R, S), c), common.empty((splits_x, g, b, n), c)
    strides = [t.stride(place) for t in (c, d) for place in (0, 1, 2, 4)]
    strides += [t.stride(place) for t in (x, y) for place in (0, 1, 3)]
    arguments = [c, d, x, y, sums_c, sums_x, R, S, b, n, o, i, g, splits_c, size_c, size_x, *strides]
    grid = ((splits_c + splits_x) * g, ceil_div(R, block["BLOCK_R"]), ceil_div(S, block["BLOCK_S"]))
    mixed = c.dtype != d.dtype or x.dtype != y.dtype
    common.launch(rectangle, grid, arguments, config, WHOLE=(o | i) % block["BLOCK_D"] == 0, UPCAST=mixed)
    tiles = ceil_div(R, FINISH.constants["BLOCK"]), ceil_div(S, FINISH.constants["BLOCK"])
    common.launch(finish_rectangle, tiles, [out, sums_c, sums_x, R, S, b, n, g, splits_c, splits_x], FINISH)
    return out.to(dtype)
