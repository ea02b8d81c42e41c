"""Gram matrix of a convolution's weight from chunks of per-sample gradients, without a patch matrix in memory.

    J_(k,n)[g, o, i q] = sum_p c_(k,n)[g, o, p] x_n[g, i, p stride + q dilation - padding],    then  G += J J^T

A program forms a tile of J for one sample and group, over all output pixels p or over a part of them; the outputs of
all K stacked rows share the patches it reads. It reads x at shifted addresses, and zero where they leave the image:
P (1/BO + 1/BQ) numbers per number of J, mostly from cache, where unfolding would write and read b g i q P numbers. J is
written once, in chunks that stay in the cache of a GPU. 2 R P g i q o operations, and R^2 g i q o for its products.
Groups too small for tiles are left to `depthwise`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels import convolution
from gramjd.kernels.convolution import Window
from gramjd.kernels.cost import GPU_CHUNK
from gramjd.kernels.symmetric import even
from gramjd.kernels.triton import common, depthwise, symmetric
from gramjd.kernels.triton.common import Config, ceil_div, exact_dot, row_offset

# Outputs and columns of a chunk below which tiles would be mostly padding.
SIDE = 64


def config_for(arch: int, items: int, outputs: int, columns: int, pixels: int) -> Config:
    """Constants for gradients [outputs, columns] of `items` samples and groups, each summed over `pixels`.

    Of any type: more pixels at a time, or large tiles in four warps, spill registers, as every number has an address.

    >>> config_for(90, 64, 64, 576, 1024).constants
    {'BLOCK_O': 64, 'BLOCK_Q': 64, 'BLOCK_P': 32}
    >>> config_for(90, 1, 3, 9, 50_000).splits
    64
    """
    side_o, side_q = (16 if n <= 16 else 32 if n <= 32 else 64 for n in (outputs, columns))
    tiles = items * ceil_div(outputs, side_o) * ceil_div(columns, side_q)
    splits = common.splits_for(arch, tiles, ceil_div(pixels, 32))
    constants = {"BLOCK_O": side_o, "BLOCK_Q": side_q, "BLOCK_P": 32}
    return Config(constants, num_warps=8 if side_o * side_q > 1024 else 4, num_stages=3, splits=splits)


@triton.jit
def patches(x, down, along, h, w, live, H, W, stride_h, stride_w):
    """Numbers [columns, pixels] of an image at (h + down, w + along), zero outside; x points at (down, along)."""
    inside = (h + down[:, None] >= 0) & (h + down[:, None] < H) & (w + along[:, None] >= 0) & (w + along[:, None] < W)
    at = h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w
    return tl.load(x[:, None] + at, mask=live & inside, other=0.0)


@triton.jit
def gradients(
    x, c, out, b, groups, K, O, I, Q, P, parts_of_work,
    H, W, OUT_W, KERNEL_W, STEP_H, STEP_W, PAD_H, PAD_W, SPREAD_H, SPREAD_W,
    stride_xb, stride_xg, stride_xi, stride_xh, stride_xw,
    stride_ck, stride_cb, stride_cg, stride_co, stride_ch, stride_cw,
    BLOCK_O: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A tile of the gradients [K O, I Q] of one sample and group over one part of the pixels.

    program_id(1) is the tile's row, and program_id(0) counts columns, groups, samples and parts.
    """
    tiles = tl.cdiv(I * Q, BLOCK_Q)
    column = tl.program_id(0) % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    item = tl.program_id(0) // tiles
    group = tl.cast(item % groups, tl.int64)
    n = tl.cast(item // groups % b, tl.int64)
    part = item // groups // b
    live_o = (row < K * O)[:, None]
    live_q = (column < I * Q)[:, None]
    down = column % Q // KERNEL_W * SPREAD_H - PAD_H
    along = column % KERNEL_W * SPREAD_W - PAD_W
    shift = down.to(tl.int64) * stride_xh + along.to(tl.int64) * stride_xw
    x_tile = x + n * stride_xb + group * stride_xg + ((column // Q).to(tl.int64) * stride_xi + shift)
    c_tile = c + n * stride_cb + group * stride_cg + row_offset(row, O, stride_ck, stride_co)
    each = tl.cdiv(tl.cdiv(P, BLOCK_P), parts_of_work) * BLOCK_P
    acc = tl.zeros([BLOCK_O, BLOCK_Q], tl.float32)
    for start in range(part * each, tl.minimum(part * each + each, P), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        live_p = (p < P)[None, :]
        top = p // OUT_W
        side = p % OUT_W
        at = top.to(tl.int64) * stride_ch + side.to(tl.int64) * stride_cw
        # Pixels go along the fast axis of both tiles, as they do in memory.
        left = tl.load(c_tile[:, None] + at[None, :], mask=live_o & live_p, other=0.0)
        h = (top * STEP_H)[None, :]
        w = (side * STEP_W)[None, :]
        right = patches(x_tile, down, along, h, w, live_q & live_p, H, W, stride_xh, stride_xw)
        acc = exact_dot(left, tl.trans(right), acc, UPCAST)
    first = ((tl.cast(part, tl.int64) * K + row // O) * b + n) * groups + group
    at = (first * O + row % O)[:, None] * (I * Q) + column[None, :]
    tl.store(out + at, acc, mask=live_o & (column < I * Q)[None, :])


def rows(x: Tensor, c: Tensor, w: Window, dtype: torch.dtype, config: Config | None = None) -> Tensor:
    """G [K b, K b] of x [b, groups i, *spatial] and c [K, b, groups o, *out], in `dtype` from sums in float32.

    Convolutions of three dimensions take the torch route.
    """
    if len(w.kernel) > 2:
        return convolution.rows(x, c, w, dtype)
    R = c.shape[0] * c.shape[1]
    G = torch.zeros(R, R, dtype=torch.float32, device=c.device)
    if 0 not in (*x.shape, *c.shape):
        x, c, w = _as_images(x.detach(), c.detach(), w)
        for inputs, outputs in chunks(x, c, math.prod(w.kernel), GPU_CHUNK):
            G += symmetric.gram_rows(chunk_of_rows(inputs, outputs, w, config), torch.float32)
    return G.to(dtype)


def _as_images(x: Tensor, c: Tensor, w: Window) -> tuple[Tensor, Tensor, Window]:
    """x [b, groups, i, h, w] and c [K, b, groups, o, h', w']; a signal is an image of height 1."""
    if len(w.kernel) == 1:
        x, c = x.unsqueeze(-2), c.unsqueeze(-2)
        w = Window((1, *w.kernel), (1, *w.stride), (0, *w.padding), (1, *w.dilation), w.groups)
    return x.unflatten(1, (w.groups, -1)), c.unflatten(2, (w.groups, -1)), w


def chunks(x: Tensor, c: Tensor, q: int, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The operands of chunks: of groups where one fits into `most` numbers, else of outputs and inputs of a group."""
    R, groups, i, o = c.shape[0] * c.shape[1], x.shape[1], x.shape[2], c.shape[3]
    if R * i * o * q <= most:
        step = even(groups, most // (R * i * o * q))
        step_o, step_i = o, i
    else:
        step = 1
        step_o = even(o, max(SIDE, most // (R * i * q)))
        step_i = even(i, max(ceil_div(SIDE, q), most // (R * step_o * q)))
    for g in range(0, groups, step):
        for at_o in range(0, o, step_o):
            for at_i in range(0, i, step_i):
                yield x[:, g : g + step, at_i : at_i + step_i], c[:, :, g : g + step, at_o : at_o + step_o]


def chunk_of_rows(x: Tensor, c: Tensor, w: Window, config: Config | None = None) -> Tensor:
    """J [K b, groups o i q] of x [b, groups, i, h, w] and c [K, b, groups, o, h', w']."""
    (K, b, g, o, height, width), (i, h, across) = c.shape, x.shape[2:]
    q, P = math.prod(w.kernel), height * width
    if config is None and depthwise.suits(K * o, i * q):
        return depthwise.chunk_of_rows(x, c, w)
    config = config or config_for(common.arch_of(c), b * g, K * o, i * q, P)
    J = common.empty((config.splits, K * b, g * o * i * q), c)
    sizes = (b, g, K, o, i, q, P, config.splits, h, across, width, w.kernel[1])
    arguments = [x, c, J, *sizes, *w.stride, *w.padding, *w.dilation, *x.stride(), *c.stride()]
    columns = ceil_div(i * q, config.constants["BLOCK_Q"])
    grid = (columns * g * b * config.splits, ceil_div(K * o, config.constants["BLOCK_O"]))
    common.launch(gradients, grid, arguments, config, UPCAST=x.dtype != c.dtype)
    return J[0] if config.splits == 1 else J.sum(0)
