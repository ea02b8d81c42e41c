"""Gram matrix of sums of outer products from per-sample gradients that never leave the chip.

    J_(k,n)[o, i] = sum_t c_(k,n,t,o) x_(n,t,i)    for a tile of o and i and for all rows at once,  then  G += J J^T

A program keeps the tile of every row in registers, so the rows must be few; it reads x and c once for each tile, which
takes T (1/BI + 1/BO) numbers per number of J where a trip of J through memory takes two. Beyond `FEW_ROWS` and
`FEW_POSITIONS` the chunks go through memory, as in the torch route, which is called then.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels import outer
from gramjd.kernels.triton import common, sums
from gramjd.kernels.triton.common import Config, ceil_div, exact_dot, row_offset, store_symmetric

FEW_ROWS, FEW_POSITIONS = 32, 128


def config_for(arch: int, dtype: torch.dtype, R: int, T: int, i: int, o: int, groups: int = 1) -> Config | None:
    """Constants for R rows, or None where they should go through memory. 32 tiles of 16 x 16 are what registers hold.

    >>> config_for(90, torch.float32, 33, 64, 256, 256) is None
    True
    """
    if R > FEW_ROWS or T > FEW_POSITIONS:
        return None
    rows, side = (16, 32) if R <= 16 else (32, 16)
    tiles = groups * ceil_div(i, side) * ceil_div(o, 16)
    block_t = 8 if dtype == torch.float32 else 16
    constants = {"ROWS": rows, "BLOCK_O": 16, "BLOCK_I": side, "BLOCK_T": block_t}
    return Config(constants, num_warps=8, num_stages=2, splits=common.splits_for(arch, 1, 2 * tiles))


@triton.jit
def chunks(
    x, c, out, R, b, T, I, O, groups, parts_of_work, square,
    stride_xg, stride_xb, stride_xt, stride_xi, stride_ck, stride_cg, stride_cb, stride_ct, stride_co,
    ROWS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_T: tl.constexpr,
    WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """G from the tiles of J in part program_id(0) of them."""
    row = tl.arange(0, ROWS)
    live_row = (row < R)[:, None, None]
    x_row = x + ((row % b).to(tl.int64) * stride_xb)[:, None, None]
    c_row = c + row_offset(row, b, stride_ck, stride_cb)[:, None, None]
    tiles_i = tl.cdiv(I, BLOCK_I)
    tiles_o = tl.cdiv(O, BLOCK_O)
    work = groups * tiles_o * tiles_i
    each = tl.cdiv(work, parts_of_work)
    first = tl.program_id(0) * each
    acc = tl.zeros([ROWS, ROWS], tl.float32)
    for item in range(first, tl.minimum(first + each, work)):
        group = tl.cast(item // (tiles_o * tiles_i), tl.int64)
        o = ((item // tiles_i) % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O))[None, :, None]
        i = (item % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I))[None, None, :]
        x_tile = x_row + group * stride_xg + i.to(tl.int64) * stride_xi
        c_tile = c_row + group * stride_cg + o.to(tl.int64) * stride_co
        J = tl.zeros([ROWS, BLOCK_O, BLOCK_I], tl.float32)
        for start in range(0, T, BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            t_c = t[None, None, :]
            t_x = t[None, :, None]
            mask_c = live_row
            mask_x = live_row
            if not WHOLE:
                mask_c = mask_c & (o < O) & (t_c < T)
                mask_x = mask_x & (i < I) & (t_x < T)
            left = tl.load(c_tile + t_c.to(tl.int64) * stride_ct, mask=mask_c, other=0.0)
            right = tl.load(x_tile + t_x.to(tl.int64) * stride_xt, mask=mask_x, other=0.0)
            J = exact_dot(left, right, J, UPCAST)
        flat = tl.reshape(J, [ROWS, BLOCK_O * BLOCK_I])
        acc = exact_dot(flat, tl.trans(flat), acc, False)
    part = tl.cast(tl.program_id(0), tl.int64) * square
    store_symmetric(out + part, acc, row, row, R)


def rows(x: Tensor, c: Tensor, dtype: torch.dtype, config: Config | None = None) -> Tensor:
    """G [K b, K b] of x [g, b, T, i] and c [K, g, b, T, o], in `dtype` from sums in float32."""
    K, g, b, T, o = c.shape
    R, i = K * b, x.shape[-1]
    config = config or config_for(common.arch_of(c), c.dtype, R, T, i, o, g)
    if config is None:
        return outer.ROUTES["rows"](x, c, dtype)
    out = common.empty((R, R), c)
    if 0 in (*c.shape, i):
        return out.zero_().to(dtype)
    parts = out if config.splits == 1 else common.empty((config.splits, 1, R, R), c)
    arguments = [x, c, parts, R, b, T, i, o, g, config.splits, R * R, *x.stride(), *c.stride()]
    whole = (i | o) % config.constants["BLOCK_I"] == 0 and T % config.constants["BLOCK_T"] == 0
    mixed = x.dtype != c.dtype
    common.launch(chunks, (config.splits,), arguments, config, WHOLE=whole, UPCAST=mixed)
    if config.splits > 1:
        sums.add_up(out, parts, None, b)
    return out.to(dtype)
