"""The gradient of a weighted sum of losses from kept factors: `sum_r w_r J_r = C^T diag(w) X` in one pass over C and X.

A program owns a tile of [o, i] and walks over the positions of all samples, or over a part of them; the stacked rows
of c are weighted and added up in registers. The weighted cotangent is rounded to the type of c before the product,
as it would be in a backward pass, so that 16-bit floats use tensor cores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels.triton import common
from gramjd.kernels.triton.common import Config, ceil_div, exact_dot


def config_for(arch: int, dtype: torch.dtype, positions: int, i: int, o: int, groups: int = 1) -> Config:
    """Constants for a gradient [groups, o, i] summed over `positions` of all samples.

    The large tile spills registers before Hopper, whose tensor cores read their operands from shared memory.

    >>> config_for(90, torch.bfloat16, 8192, 4096, 4096).constants["BLOCK_O"]
    128
    """
    large = arch >= 90 and dtype != torch.float32 and groups * (i // 128) * (o // 128) >= common.multiprocessors(arch)
    side, warps = (128, 8) if large else (64, 4)
    tiles = groups * ceil_div(i, side) * ceil_div(o, side)
    splits = common.splits_for(arch, tiles, ceil_div(positions, 32))
    return Config({"BLOCK_O": side, "BLOCK_I": side, "BLOCK_S": 32}, num_warps=warps, num_stages=3, splits=splits)


@triton.jit
def weighted(
    x, c, w, out, K, b, T, I, O, groups, parts_of_work,
    stride_xg, stride_xb, stride_xt, stride_xi, stride_ck, stride_cg, stride_cb, stride_ct, stride_co,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_S: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tile (program_id(1), program_id(2)) of one group's gradient over one part of the positions."""
    group = tl.cast(tl.program_id(0) % groups, tl.int64)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.program_id(2) * BLOCK_I + tl.arange(0, BLOCK_I)
    x_tile = x + group * stride_xg + (i.to(tl.int64) * stride_xi)[None, :]
    c_tile = c + group * stride_cg + (o.to(tl.int64) * stride_co)[:, None]
    blocks = tl.cdiv(tl.cdiv(b * T, BLOCK_S), parts_of_work)
    first = tl.program_id(0) // groups * blocks * BLOCK_S
    acc = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    for start in range(first, tl.minimum(first + blocks * BLOCK_S, b * T), BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        live = s < b * T
        n = s // T
        t = (s % T).to(tl.int64)
        at_c = (n.to(tl.int64) * stride_cb + t * stride_ct)[None, :]
        at_x = (n.to(tl.int64) * stride_xb + t * stride_xt)[:, None]
        live_c = live[None, :] & (o < O)[:, None]
        left = tl.zeros([BLOCK_O, BLOCK_S], tl.float32)
        for k in range(K):
            weight = tl.load(w + k * b + n, mask=live, other=0.0)[None, :]
            left += weight * tl.load(c_tile + tl.cast(k, tl.int64) * stride_ck + at_c, mask=live_c, other=0.0).to(
                tl.float32
            )
        right = tl.load(x_tile + at_x, mask=live[:, None] & (i < I)[None, :], other=0.0)
        acc = exact_dot(left.to(c.dtype.element_ty), right, acc, UPCAST)
    at = (tl.cast(tl.program_id(0), tl.int64) * O + o[:, None]) * I + i[None, :]
    tl.store(out + at, acc, mask=(o < O)[:, None] & (i < I)[None, :])


def weighted_outer(x: Tensor, c: Tensor, w: Tensor, config: Config | None = None) -> Tensor:
    """`sum_knt w_(k,n) c_(k,n,t) x_(n,t)^T` [g, o, i], typed as c, of x [g, b, T, i], c [K, g, b, T, o], w [K b]."""
    K, g, b, T, o = c.shape
    i = x.shape[-1]
    if 0 in (*c.shape, i):
        return c.new_zeros(g, o, i)
    config = config or config_for(common.arch_of(c), c.dtype, b * T, i, o, g)
    # A 16-bit float could underflow under small weights: with columns of absolute sum 1 at most it stays in range.
    scale = w.detach().float().view(K, b).abs().sum(0).amax()
    relative = (w.float() / torch.where(scale > 0, scale, 1)).contiguous()
    parts = common.empty((config.splits, g, o, i), c)
    tiles = (ceil_div(o, config.constants["BLOCK_O"]), ceil_div(i, config.constants["BLOCK_I"]))
    arguments = [x, c, relative, parts, K, b, T, i, o, g, config.splits, *x.stride(), *c.stride()]
    common.launch(weighted, (config.splits * g, *tiles), arguments, config, UPCAST=x.dtype != c.dtype)
    return (parts[0] if config.splits == 1 else parts.sum(0)).mul_(scale).to(c.dtype)
