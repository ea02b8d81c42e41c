"""Symmetric rank-k updates with split sums: `J J^T` of given rows, `(C C^T) * (X X^T)` of outer products.

Two launches. `partial` spreads the sums over o, and over i, over many programs, in tiles of the upper triangle, and
reads every operand once for each row of tiles; `sums.finish` adds the partial sums in a fixed order, multiplies, adds
up the groups and writes both triangles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels.triton import common, pairwise, sums
from gramjd.kernels.triton.common import Config, ceil_div, gram_tile, row_offset, store_symmetric


def config_for(arch: int, dtype: torch.dtype, R: int, D: int, groups: int = 1) -> Config:
    """Constants of `partial` for R rows of D numbers: tiles as large as R needs, split until they fill the device.

    >>> config_for(90, torch.float32, 32, 4096).splits
    64
    """
    block = 16 if R <= 16 else 32 if R <= 32 else 64
    block_d = 32 if dtype == torch.float32 else 64
    tiles = ceil_div(R, block)
    splits = common.splits_for(arch, groups * tiles * (tiles + 1) // 2, ceil_div(D, block_d))
    return Config({"BLOCK": block, "BLOCK_D": block_d}, num_warps=8 if block == 64 else 4, num_stages=3, splits=splits)


@triton.jit
def partial(
    c, x, sums_c, sums_x, R, b, O, I, groups, splits_c, splits_x, size_c, size_x,
    stride_ck, stride_cg, stride_cb, stride_co, stride_xg, stride_xb, stride_xi,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tile (program_id(1), program_id(2)) of one group's C C^T, or X X^T, over one part of its sum."""
    group = tl.cast(tl.program_id(0) % groups, tl.int64)
    part = tl.program_id(0) // groups
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(1) <= tl.program_id(2):
        if part < splits_c:
            start = c + group * stride_cg
            left = start + row_offset(row, b, stride_ck, stride_cb)
            right = start + row_offset(column, b, stride_ck, stride_cb)
            lo = part * size_c
            tile = gram_tile(
                left, row < R, right, column < R, lo, tl.minimum(lo + size_c, O), stride_co, BLOCK_D, WHOLE, UPCAST
            )
            store_symmetric(sums_c + (part * groups + group) * R * R, tile, row, column, R)
        elif tl.program_id(2) * BLOCK < b:
            part -= splits_c
            start = x + group * stride_xg
            left = start + row.to(tl.int64) * stride_xb
            right = start + column.to(tl.int64) * stride_xb
            lo = part * size_x
            tile = gram_tile(
                left, row < b, right, column < b, lo, tl.minimum(lo + size_x, I), stride_xi, BLOCK_D, WHOLE, UPCAST
            )
            store_symmetric(sums_x + (part * groups + group) * b * b, tile, row, column, b)


def gram_rows(J: Tensor, dtype: torch.dtype, config: Config | None = None) -> Tensor:
    """`J J^T` [R, R] of J [R, d], in `dtype` from sums in float32."""
    R, d = J.shape
    return _gram(None, J[None, None, :, None], config or config_for(common.arch_of(J), J.dtype, R, d)).to(dtype)


def product(x: Tensor, c: Tensor, dtype: torch.dtype, config: Config | None = None) -> Tensor:
    """`sum_g (C C^T) * (X X^T)` [K b, K b] of x [g, b, 1, i] and c [K, g, b, 1, o].

    Where the tiles of G alone fill the device no sum needs splitting, and the pairwise kernel does all in one launch.
    """
    K, g, b, _, o = c.shape
    chosen = config or config_for(common.arch_of(c), c.dtype, K * b, max(o, x.shape[-1]), g)
    if config is None and chosen.splits == 1 and K == 1:
        return pairwise.pairwise(x, c, dtype)
    return _gram(x, c, chosen).to(dtype)


def _gram(x: Tensor | None, c: Tensor, config: Config) -> Tensor:
    K, g, b, _, o = c.shape
    R = K * b
    out = common.empty((R, R), c)
    if 0 in (R, g, o) or (x is not None and x.shape[-1] == 0):
        return out.zero_()
    size_c, splits_c = parts(o, config)
    size_x, splits_x = (0, 0) if x is None else parts(x.shape[-1], config)
    sums_c = common.empty((splits_c, g, R, R), c)
    sums_x = sums_c if x is None else common.empty((splits_x, g, b, b), c)
    tiles = ceil_div(R, config.constants["BLOCK"])
    strides_c = (c.stride(0), c.stride(1), c.stride(2), c.stride(4))
    strides_x = (0, 0, 0) if x is None else (x.stride(0), x.stride(1), x.stride(3))
    sizes = (R, b, o, 0 if x is None else x.shape[-1], g, splits_c, splits_x, size_c, size_x)
    operands = (c, c if x is None else x, sums_c, sums_x)
    arguments = [*operands, *sizes, *strides_c, *strides_x]
    whole = (o | (0 if x is None else x.shape[-1])) % config.constants["BLOCK_D"] == 0
    common.launch(partial, ((splits_c + splits_x) * g, tiles, tiles), arguments, config, WHOLE=whole)
    sums.add_up(out, sums_c, sums_x if x is not None else None, b)
    return out


def parts(length: int, config: Config) -> tuple[int, int]:
    """Length and number of the parts of a sum: whole blocks each, none empty."""
    block = config.constants["BLOCK_D"]
    size = ceil_div(ceil_div(length, block), config.splits) * block
    return size, ceil_div(length, size)
