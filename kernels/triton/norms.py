"""Squared lengths of rows that are sums of outer products, by pairs of their own positions, without tiles in memory.

    |J_(k,n)|^2 = sum over t, s of (x_nt . x_ns) (c_knt . c_kns)

A program owns a row and walks over the pairs of blocks of its positions on and above the diagonal, or over a part of
those where the rows are too few to fill the device; the parts are added up in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels.triton import common
from gramjd.kernels.triton.common import Config, ceil_div, gram_tile, row_offset


def config_for(arch: int, dtype: torch.dtype, R: int, T: int) -> Config:
    """Constants for R rows of T positions: the smallest tile that holds them, 64 on a side at most.

    >>> config_for(90, torch.float32, 64, 20).constants["POSITIONS"]
    32
    """
    positions = 16 if T <= 16 else 32 if T <= 32 else 64
    blocks = ceil_div(T, positions)
    block_d = 64 if dtype != torch.float32 else 32 if positions == 16 else 16
    splits = common.splits_for(arch, R, blocks * (blocks + 1))
    constants = {"POSITIONS": positions, "BLOCK_D": block_d}
    return Config(constants, num_warps=8 if positions == 64 else 4, num_stages=3, splits=splits)


@triton.jit
def lengths(
    x, c, out, R, b, T, I, O, parts_of_work,
    stride_xb, stride_xt, stride_xi, stride_ck, stride_cb, stride_ct, stride_co,
    POSITIONS: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Row program_id(0), over part program_id(1) of its pairs of blocks."""
    row = tl.program_id(0)
    x_row = x + (row % b).to(tl.int64) * stride_xb
    c_row = c + row_offset(row, b, stride_ck, stride_cb)
    blocks = tl.cdiv(T, POSITIONS)
    work = blocks * blocks
    each = tl.cdiv(work, parts_of_work)
    first = tl.program_id(1) * each
    place = tl.arange(0, POSITIONS)
    acc = tl.zeros([POSITIONS, POSITIONS], tl.float32)
    for item in range(first, tl.minimum(first + each, work)):
        above, beside = item // blocks, item % blocks
        if above <= beside:
            t = above * POSITIONS + place
            s = beside * POSITIONS + place
            xt = x_row + t.to(tl.int64) * stride_xt
            xs = x_row + s.to(tl.int64) * stride_xt
            ct = c_row + t.to(tl.int64) * stride_ct
            cs = c_row + s.to(tl.int64) * stride_ct
            inputs = gram_tile(xt, t < T, xs, s < T, 0, I, stride_xi, BLOCK_D, WHOLE, UPCAST)
            outputs = gram_tile(ct, t < T, cs, s < T, 0, O, stride_co, BLOCK_D, WHOLE, UPCAST)
            acc += inputs * outputs * tl.where(above < beside, 2.0, 1.0)
    part = tl.cast(tl.program_id(1), tl.int64) * R
    tl.store(out + part + row, tl.sum(tl.sum(acc, axis=1), axis=0))


def pair(x: Tensor, c: Tensor, dtype: torch.dtype, config: Config | None = None) -> Tensor:
    """Squared lengths [K, b] of x [b, T, i] and c [K, b, T, o], in `dtype` from sums in float32."""
    K, b, T, o = c.shape
    R, i = K * b, x.shape[-1]
    if 0 in (*c.shape, i):
        return torch.zeros(K, b, dtype=dtype, device=c.device)
    config = config or config_for(common.arch_of(c), c.dtype, R, T)
    parts = common.empty((config.splits, R), c)
    arguments = [x, c, parts, R, b, T, i, o, config.splits, *x.stride(), *c.stride()]
    whole = (o | i) % config.constants["BLOCK_D"] == 0
    common.launch(lengths, (R, config.splits), arguments, config, WHOLE=whole)
    return (parts[0] if config.splits == 1 else parts.sum(0)).view(K, b).to(dtype)
