"""Rectangles of inner products by pairs of positions, tiles in registers and never `[R T, R2 T2]` in memory.

    outer     X[(k,n), (l,m)] = sum over g, t, s of (x_nt . x2_ms) (c_knt . c2_lms)
    gathered  the same with [ids_nt = ids2_ms] in the place of (x_nt . x2_ms)

As in `pairwise`, but for rows of two factors: a program owns rows of the one and rows of the other, and walks over all
pairs of blocks of their positions, or over a part of those where its like are too few to fill the device. The parts are
added up in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels.triton import common
from gramjd.kernels.triton.common import Config, ceil_div, inner_tile, row_offset
from gramjd.kernels.triton.cross import store

# Rows and positions of each on a side of a tile: fewer ways than in `pairwise`, as any two of a size meet here.
LARGE = ((1, 64), (16, 4))
SMALL = ((1, 32), (8, 4), (32, 1))


def config_for(arch: int, dtype: torch.dtype, R: int, T: int, R2: int, T2: int, groups: int = 1) -> Config:
    """Constants for R rows of T positions by R2 rows of T2: per side the way to fill it that pads least.

    >>> config_for(90, torch.float32, 64, 5, 8, 100).constants
    {'ROWS': 32, 'POSITIONS': 1, 'ROWS2': 8, 'POSITIONS2': 4, 'BLOCK_D': 32}
    """

    def padded(R: int, T: int, shape: tuple[int, int]) -> int:
        rows, positions = shape
        return ceil_div(T, positions) * positions * ceil_div(R, rows) * rows

    sides = ((R, T), (R2, T2))
    large = all(R * T > 1024 and min(padded(R, T, s) for s in LARGE) <= 1.25 * R * T for R, T in sides)
    ways = LARGE if large else SMALL
    (rows, positions), (rows2, positions2) = (min(ways, key=lambda s: padded(R, T, s)) for R, T in sides)
    steps = groups * ceil_div(T, positions) * ceil_div(T2, positions2)
    splits = common.splits_for(arch, ceil_div(R, rows) * ceil_div(R2, rows2), 2 * steps)
    block_d = 64 if dtype != torch.float32 else 16 if large else 32
    constants = {"ROWS": rows, "POSITIONS": positions, "ROWS2": rows2, "POSITIONS2": positions2, "BLOCK_D": block_d}
    return Config(constants, num_warps=8 if large else 4, num_stages=3, splits=splits)


@triton.jit
def cross_pairs(
    x, c, x2, c2, out, R, b, T, R2, b2, T2, I, O, groups, parts_of_work,
    stride_xg, stride_xb, stride_xt, stride_xi, stride_ck, stride_cg, stride_cb, stride_ct, stride_co,
    stride_x2g, stride_x2b, stride_x2t, stride_x2i, stride_c2k, stride_c2g, stride_c2b, stride_c2t, stride_c2o,
    ROWS: tl.constexpr, POSITIONS: tl.constexpr, ROWS2: tl.constexpr, POSITIONS2: tl.constexpr,
    BLOCK_D: tl.constexpr, WHOLE: tl.constexpr, IDS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Rectangle (program_id(1), program_id(2)) over part program_id(0) of the pairs of blocks.

    With IDS x and x2 hold ids, and their equality stands in the place of x_nt . x2_ms.
    """
    place = tl.arange(0, ROWS * POSITIONS)
    place2 = tl.arange(0, ROWS2 * POSITIONS2)
    row = tl.program_id(1) * ROWS + place // POSITIONS
    column = tl.program_id(2) * ROWS2 + place2 // POSITIONS2
    x_left = x + (row % b).to(tl.int64) * stride_xb
    x_right = x2 + (column % b2).to(tl.int64) * stride_x2b
    c_left = c + row_offset(row, b, stride_ck, stride_cb)
    c_right = c2 + row_offset(column, b2, stride_c2k, stride_c2b)
    blocks = tl.cdiv(T, POSITIONS)
    blocks2 = tl.cdiv(T2, POSITIONS2)
    work = groups * blocks * blocks2
    each = tl.cdiv(work, parts_of_work)
    first = tl.program_id(0) * each
    acc = tl.zeros([ROWS * POSITIONS, ROWS2 * POSITIONS2], tl.float32)
    for item in range(first, tl.minimum(first + each, work)):
        group = tl.cast(item // (blocks * blocks2), tl.int64)
        t = (item // blocks2) % blocks * POSITIONS + place % POSITIONS
        s = item % blocks2 * POSITIONS2 + place2 % POSITIONS2
        live_t = (row < R) & (t < T)
        live_s = (column < R2) & (s < T2)
        xt = x_left + group * stride_xg + t.to(tl.int64) * stride_xt
        xs = x_right + group * stride_x2g + s.to(tl.int64) * stride_x2t
        ct = c_left + group * stride_cg + t.to(tl.int64) * stride_ct
        cs = c_right + group * stride_c2g + s.to(tl.int64) * stride_c2t
        if IDS:
            equal = tl.load(xt, mask=live_t, other=0)[:, None] == tl.load(xs, mask=live_s, other=0)[None, :]
            equal = equal & live_t[:, None] & live_s[None, :]
            if tl.sum(tl.sum(equal.to(tl.int32), axis=1), axis=0) > 0:
                outputs = inner_tile(ct, live_t, stride_co, cs, live_s, stride_c2o, 0, O, BLOCK_D, WHOLE, UPCAST)
                acc += tl.where(equal, outputs, 0.0)
        else:
            inputs = inner_tile(xt, live_t, stride_xi, xs, live_s, stride_x2i, 0, I, BLOCK_D, WHOLE, UPCAST)
            outputs = inner_tile(ct, live_t, stride_co, cs, live_s, stride_c2o, 0, O, BLOCK_D, WHOLE, UPCAST)
            acc += inputs * outputs
    tile = tl.sum(tl.sum(tl.reshape(acc, [ROWS, POSITIONS, ROWS2, POSITIONS2]), axis=3), axis=1)
    own = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    theirs = tl.program_id(2) * ROWS2 + tl.arange(0, ROWS2)
    part = tl.cast(tl.program_id(0), tl.int64) * R * R2
    store(out + part, tile, own, theirs, R, R2)


def pairwise(x: Tensor, c: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype, config: Config | None = None) -> Tensor:
    """Inner products [K b, K2 b2], in `dtype` from sums in float32.

    Args:
        x, c: [g, b, T, i] and [K, g, b, T, o].
        x2, c2: [g, b2, T2, i] and [K2, g, b2, T2, o].
        dtype: of the result.
        config: instead of `config_for`.
    """
    return _rectangle(x, c, x2, c2, config, ids=False).to(dtype)


def gathered(
    ids: Tensor, c: Tensor, ids2: Tensor, c2: Tensor, dtype: torch.dtype, config: Config | None = None
) -> Tensor:
    """Inner products [K b, K2 b2] of rows of a table: ids [b, T], c [K, b, T, d] by ids2 [b2, T2], c2 [K2, b2, T2, d].

    Blocks without an id in common cost no product, and nothing is asked of the host.
    """
    operands = (ids[None, :, :, None], c[:, None], ids2[None, :, :, None], c2[:, None])
    return _rectangle(*operands, config, ids=True).to(dtype)


def _rectangle(x: Tensor, c: Tensor, x2: Tensor, c2: Tensor, config: Config | None, ids: bool) -> Tensor:
    (K, g, b, T, o), (K2, _, b2, T2, _), i = c.shape, c2.shape, x.shape[-1]
    R, R2 = K * b, K2 * b2
    if 0 in (*c.shape, *c2.shape, i):
        return common.empty((R, R2), c).zero_()
    config = config or config_for(common.arch_of(c), c.dtype, R, T, R2, T2, g)
    parts = common.empty((config.splits, R, R2), c)
    strides = [stride for t in (x, c, x2, c2) for stride in t.stride()]
    arguments = [x, c, x2, c2, parts, R, b, T, R2, b2, T2, i, o, g, config.splits, *strides]
    grid = (config.splits, ceil_div(R, config.constants["ROWS"]), ceil_div(R2, config.constants["ROWS2"]))
    whole = (o | (0 if ids else i)) % config.constants["BLOCK_D"] == 0
    mixed = c.dtype != c2.dtype or x.dtype != x2.dtype
    common.launch(cross_pairs, grid, arguments, config, WHOLE=whole, IDS=ids, UPCAST=mixed)
    return parts[0] if config.splits == 1 else parts.sum(0)
