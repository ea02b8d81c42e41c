"""Gram matrices by pairs of positions, tiles of both factors in registers and never `[R T, R T]` in memory.

    outer     G[(k,n), (l,m)] = sum over g, t, s of (x_nt . x_ms) (c_knt . c_lms)
    gathered  the same with [ids_nt = ids_ms] in the place of (x_nt . x_ms)

A program owns a square of rows and walks over all pairs of blocks of their positions, or over a part of those where
the squares are too few to fill the device; the parts are added up by `sums.finish`. With K > 1 stacked rows the
products of x are formed anew for each pair of stacked rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels.triton import common, sums
from gramjd.kernels.triton.common import Config, ceil_div, gram_tile, row_offset, store_symmetric

# Rows and positions of each on a side of a tile. 64 rows of a position each would not fit into registers.
LARGE = ((1, 64), (4, 16), (16, 4))
SMALL = ((1, 32), (2, 16), (8, 4), (32, 1))


def config_for(arch: int, dtype: torch.dtype, R: int, T: int, D: int, groups: int = 1) -> Config:
    """Constants for R rows of T positions of D numbers.

    A side of a tile holds ROWS rows times POSITIONS of each: of the ways to fill it, the one that pads least.

    >>> config_for(90, torch.float32, 64, 5, 256).constants["POSITIONS"]
    1
    >>> config_for(90, torch.float32, 70, 64, 256).constants["POSITIONS"]
    64
    """

    def padded(shape: tuple[int, int]) -> int:
        rows, positions = shape
        return ceil_div(T, positions) * positions * ceil_div(R, rows) * rows

    rows, positions = min(LARGE + SMALL if R * T > 1024 else SMALL, key=padded)
    squares, steps = ceil_div(R, rows), groups * ceil_div(T, positions) ** 2
    splits = common.splits_for(arch, squares * (squares + 1) // 2, 2 * steps)
    block_d = 64 if dtype != torch.float32 else 16 if rows * positions == 64 else 32
    constants = {"ROWS": rows, "POSITIONS": positions, "BLOCK_D": block_d}
    return Config(constants, num_warps=8 if rows * positions == 64 else 4, num_stages=3, splits=splits)


@triton.jit
def pairs(
    x, c, out, R, b, T, I, O, groups, parts_of_work, square,
    stride_xg, stride_xb, stride_xt, stride_xi, stride_ck, stride_cg, stride_cb, stride_ct, stride_co,
    ROWS: tl.constexpr, POSITIONS: tl.constexpr, BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr, IDS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Square (program_id(1), program_id(2)) of G over part program_id(0) of the pairs of blocks.

    With IDS x holds ids, and their equality stands in the place of x_nt . x_ms.
    """
    if tl.program_id(1) <= tl.program_id(2):
        place = tl.arange(0, ROWS * POSITIONS)
        row = tl.program_id(1) * ROWS + place // POSITIONS
        column = tl.program_id(2) * ROWS + place // POSITIONS
        x_left = x + (row % b).to(tl.int64) * stride_xb
        x_right = x + (column % b).to(tl.int64) * stride_xb
        c_left = c + row_offset(row, b, stride_ck, stride_cb)
        c_right = c + row_offset(column, b, stride_ck, stride_cb)
        blocks = tl.cdiv(T, POSITIONS)
        work = groups * blocks * blocks
        each = tl.cdiv(work, parts_of_work)
        first = tl.program_id(0) * each
        acc = tl.zeros([ROWS * POSITIONS, ROWS * POSITIONS], tl.float32)
        for item in range(first, tl.minimum(first + each, work)):
            group = tl.cast(item // (blocks * blocks), tl.int64)
            t = (item // blocks) % blocks * POSITIONS + place % POSITIONS
            s = item % blocks * POSITIONS + place % POSITIONS
            live_t = (row < R) & (t < T)
            live_s = (column < R) & (s < T)
            xt = x_left + group * stride_xg + t.to(tl.int64) * stride_xt
            xs = x_right + group * stride_xg + s.to(tl.int64) * stride_xt
            ct = c_left + group * stride_cg + t.to(tl.int64) * stride_ct
            cs = c_right + group * stride_cg + s.to(tl.int64) * stride_ct
            if IDS:
                equal = tl.load(xt, mask=live_t, other=-1)[:, None] == tl.load(xs, mask=live_s, other=-2)[None, :]
                if tl.sum(tl.sum(equal.to(tl.int32), axis=1), axis=0) > 0:
                    outputs = gram_tile(ct, live_t, cs, live_s, 0, O, stride_co, BLOCK_D, WHOLE, UPCAST)
                    acc += tl.where(equal, outputs, 0.0)
            else:
                inputs = gram_tile(xt, live_t, xs, live_s, 0, I, stride_xi, BLOCK_D, WHOLE, UPCAST)
                acc += inputs * gram_tile(ct, live_t, cs, live_s, 0, O, stride_co, BLOCK_D, WHOLE, UPCAST)
        tile = tl.sum(tl.sum(tl.reshape(acc, [ROWS, POSITIONS, ROWS, POSITIONS]), axis=3), axis=1)
        own = tl.arange(0, ROWS)
        part = tl.cast(tl.program_id(0), tl.int64) * square
        store_symmetric(out + part, tile, tl.program_id(1) * ROWS + own, tl.program_id(2) * ROWS + own, R)


def pairwise(x: Tensor, c: Tensor, dtype: torch.dtype, config: Config | None = None) -> Tensor:
    """G [K b, K b] of x [g, b, T, i] and c [K, g, b, T, o], in `dtype` from sums in float32."""
    return _gram(x, c, config, ids=False).to(dtype)


def gathered(ids: Tensor, c: Tensor, dtype: torch.dtype, config: Config | None = None) -> Tensor:
    """G [K b, K b] of ids [b, T], none negative, and c [K, b, T, d]; blocks without an id in common cost no product."""
    return _gram(ids[None, :, :, None], c[:, None], config, ids=True).to(dtype)


def _gram(x: Tensor, c: Tensor, config: Config | None, ids: bool) -> Tensor:
    K, g, b, T, o = c.shape
    R, i = K * b, x.shape[-1]
    out = common.empty((R, R), c)
    if 0 in (*c.shape, i):
        return out.zero_()
    config = config or config_for(common.arch_of(c), c.dtype, R, T, max(i, o), g)
    parts = out if config.splits == 1 else common.empty((config.splits, 1, R, R), c)
    squares = ceil_div(R, config.constants["ROWS"])
    arguments = [x, c, parts, R, b, T, i, o, g, config.splits, R * R, *x.stride(), *c.stride()]
    grid = (config.splits, squares, squares)
    whole = (o | (0 if ids else i)) % config.constants["BLOCK_D"] == 0
    common.launch(pairs, grid, arguments, config, WHOLE=whole, IDS=ids)
    if config.splits > 1:
        sums.add_up(out, parts, None, b)
    return out
