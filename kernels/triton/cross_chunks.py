"""Rectangles of inner products from per-sample gradients of two factors that never leave the chip.

    J_(k,n)[o, i] = sum_t c_(k,n,t,o) x_(n,t,i), J2 alike,  for a tile of o and i and for all rows,  then  X += J J2^T

As in `chunks`, a program keeps the tile of every row in registers, here of both factors, so both must have few rows.
Beyond `FEW_ROWS` and `FEW_POSITIONS` the chunks go through memory, as in the torch route, which is called then.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels import cross
from gramjd.kernels.triton import common
from gramjd.kernels.triton.chunks import FEW_POSITIONS, FEW_ROWS
from gramjd.kernels.triton.common import Config, ceil_div, exact_dot, row_offset
from gramjd.kernels.triton.cross import store


def config_for(
    arch: int, dtype: torch.dtype, R: int, T: int, R2: int, T2: int, i: int, o: int, groups: int = 1
) -> Config | None:
    """Constants for R rows by R2, or None where they should go through memory.

    >>> config_for(90, torch.float32, 33, 64, 1, 64, 256, 256) is None
    True
    """
    if max(R, R2) > FEW_ROWS or max(T, T2) > FEW_POSITIONS:
        return None
    rows, rows2 = (16 if n <= 16 else 32 for n in (R, R2))
    tiles = groups * ceil_div(i, 16) * ceil_div(o, 16)
    block_t = 8 if dtype == torch.float32 else 16
    constants = {"ROWS": rows, "ROWS2": rows2, "BLOCK_O": 16, "BLOCK_I": 16, "BLOCK_T": block_t}
    # Loads ahead of two large tiles of float32 would spill registers.
    stages = 1 if rows * rows2 > 512 and dtype == torch.float32 else 2
    return Config(constants, num_warps=8, num_stages=stages, splits=common.splits_for(arch, 1, 2 * tiles))


@triton.jit
def chunk_of_rows(
    x, c, live, T, o, i, O, I, stride_xt, stride_ct,
    ROWS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_T: tl.constexpr,
    WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """J [ROWS, BLOCK_O, BLOCK_I], for pointers x [ROWS, 1, BLOCK_I] and c [ROWS, BLOCK_O, 1] to the first position."""
    J = tl.zeros([ROWS, BLOCK_O, BLOCK_I], tl.float32)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        t_c = t[None, None, :]
        t_x = t[None, :, None]
        mask_c = live & (t_c < T)
        mask_x = live & (t_x < T)
        if not WHOLE:
            mask_c = mask_c & (o < O)
            mask_x = mask_x & (i < I)
        left = tl.load(c + t_c.to(tl.int64) * stride_ct, mask=mask_c, other=0.0)
        right = tl.load(x + t_x.to(tl.int64) * stride_xt, mask=mask_x, other=0.0)
        J = exact_dot(left, right, J, UPCAST)
    return tl.reshape(J, [ROWS, BLOCK_O * BLOCK_I])


@triton.jit
def cross_chunks(
    x, c, x2, c2, out, R, b, T, R2, b2, T2, I, O, groups, parts_of_work,
    stride_xg, stride_xb, stride_xt, stride_xi, stride_ck, stride_cg, stride_cb, stride_ct, stride_co,
    stride_x2g, stride_x2b, stride_x2t, stride_x2i, stride_c2k, stride_c2g, stride_c2b, stride_c2t, stride_c2o,
    ROWS: tl.constexpr, ROWS2: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_T: tl.constexpr,
    WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The rectangle from the tiles of J and J2 in part program_id(0) of them."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, ROWS2)
    live = (row < R)[:, None, None]
    live2 = (column < R2)[:, None, None]
    x_row = x + ((row % b).to(tl.int64) * stride_xb)[:, None, None]
    c_row = c + row_offset(row, b, stride_ck, stride_cb)[:, None, None]
    x2_row = x2 + ((column % b2).to(tl.int64) * stride_x2b)[:, None, None]
    c2_row = c2 + row_offset(column, b2, stride_c2k, stride_c2b)[:, None, None]
    tiles_i = tl.cdiv(I, BLOCK_I)
    tiles_o = tl.cdiv(O, BLOCK_O)
    work = groups * tiles_o * tiles_i
    each = tl.cdiv(work, parts_of_work)
    first = tl.program_id(0) * each
    acc = tl.zeros([ROWS, ROWS2], tl.float32)
    for item in range(first, tl.minimum(first + each, work)):
        group = tl.cast(item // (tiles_o * tiles_i), tl.int64)
        o = ((item // tiles_i) % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O))[None, :, None]
        i = (item % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I))[None, None, :]
        at_o = o.to(tl.int64)
        at_i = i.to(tl.int64)
        J = chunk_of_rows(
            x_row + group * stride_xg + at_i * stride_xi, c_row + group * stride_cg + at_o * stride_co, live,
            T, o, i, O, I, stride_xt, stride_ct, ROWS, BLOCK_O, BLOCK_I, BLOCK_T, WHOLE, UPCAST,
        )  # fmt: skip
        J2 = chunk_of_rows(
            x2_row + group * stride_x2g + at_i * stride_x2i, c2_row + group * stride_c2g + at_o * stride_c2o, live2,
            T2, o, i, O, I, stride_x2t, stride_c2t, ROWS2, BLOCK_O, BLOCK_I, BLOCK_T, WHOLE, UPCAST,
        )  # fmt: skip
        acc = exact_dot(J, tl.trans(J2), acc, False)
    part = tl.cast(tl.program_id(0), tl.int64) * R * R2
    store(out + part, acc, row, column, R, R2)


def rows(x: Tensor, c: Tensor, x2: Tensor, c2: Tensor, dtype: torch.dtype, config: Config | None = None) -> Tensor:
    """Inner products [K b, K2 b2] of x [g, b, T, i], c [K, g, b, T, o] by x2 [g, b2, T2, i], c2 [K2, g, b2, T2, o].

    In `dtype` from sums in float32.
    """
    (K, g, b, T, o), (K2, _, b2, T2, _), i = c.shape, c2.shape, x.shape[-1]
    R, R2 = K * b, K2 * b2
    config = config or config_for(common.arch_of(c), c.dtype, R, T, R2, T2, i, o, g)
    if config is None:
        return cross.CROSS["rows"](x, c, x2, c2, dtype)
    if 0 in (*c.shape, *c2.shape, i):
        return common.empty((R, R2), c).zero_().to(dtype)
    parts = common.empty((config.splits, R, R2), c)
    strides = [stride for t in (x, c, x2, c2) for stride in t.stride()]
    arguments = [x, c, x2, c2, parts, R, b, T, R2, b2, T2, i, o, g, config.splits, *strides]
    whole = (i | o) % config.constants["BLOCK_I"] == 0
    mixed = x.dtype != c.dtype or x2.dtype != c2.dtype
    common.launch(cross_chunks, (config.splits,), arguments, config, WHOLE=whole, UPCAST=mixed)
    return (parts[0] if config.splits == 1 else parts.sum(0)).to(dtype)
