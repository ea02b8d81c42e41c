"""Gram matrix of rows that each sum over a segment of positions, however long, by pairs of positions in registers.

    G[(k,r), (l,s)] = sum over g, t in (g, r), u in (g, s) of (x_t . x_u) (c_kt . c_lu)

Positions are sorted by group and row, and offsets say where a segment begins, so that neither a tensor nor a tile is
padded to the longest one. A program owns ROWS rows by ROWS rows, whose positions are two ranges, and walks over the
pairs of blocks of these; a product with zeros and ones adds up what is of one pair of rows. It takes 2 ROWS operations
per pair of positions, where the products take 2 (i + o).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels.triton import common, sums
from gramjd.kernels.triton.common import Config, ceil_div, exact_dot, gram_tile

ROWS = 16


def config_for(arch: int, dtype: torch.dtype, n: int, K: int, positions: int, groups: int = 1) -> Config:
    """Constants for n segments per group with so many `positions` in all of them, of K stacked rows.

    The host does not see the offsets: how many blocks a program has is taken from the mean. Larger tiles spill
    registers, smaller ones of float32 do so, too, where a row is no multiple of a block.

    >>> config_for(90, torch.float32, 64, 1, 6400).constants
    {'ROWS': 16, 'POSITIONS': 64, 'BLOCK_D': 32}
    """
    mean = positions / max(1, groups * n) * min(n, ROWS)
    side, block_d, warps = (64, 32, 8) if dtype == torch.float32 else (32, 64, 4)
    squares, blocks = K * ceil_div(n, ROWS), max(1, round(mean / side))
    splits = common.splits_for(arch, squares * (squares + 1) // 2, 2 * groups * blocks * blocks)
    return Config({"ROWS": ROWS, "POSITIONS": side, "BLOCK_D": block_d}, warps, 3, splits)


@triton.jit
def belongs(position, starts, row, n):
    """Ones where a position is of a row, none for the rows from n on."""
    begin = tl.load(starts + tl.minimum(row, n))
    end = tl.load(starts + tl.minimum(row + 1, n))
    return ((position >= begin) & (position < end)).to(tl.float32)


@triton.jit
def summed(tile, left, right):
    """`left tile right` for zeros and ones, by which position is of which row; NaN reaches its own row and no other."""
    finite = tl.abs(tile) < float("inf")
    zeros = tl.zeros([left.shape[0], tile.shape[1]], tl.float32)
    total = tl.zeros([left.shape[0], right.shape[1]], tl.float32)
    once = exact_dot(left, tl.where(finite, tile, 0.0), zeros, False)
    found = exact_dot(once, right, total, False)
    if tl.max(tl.max(tl.where(finite, 0, 1), axis=1), axis=0) > 0:
        bad = exact_dot(exact_dot(left, tl.where(finite, 0.0, 1.0), zeros, False), right, total, False)
        found = tl.where(bad > 0, float("nan"), found)
    return found


@triton.jit
def segments(
    x, c, starts, out, n, tiles, R, I, O, groups, parts_of_work,
    stride_xp, stride_xi, stride_ck, stride_cp, stride_co,
    ROWS: tl.constexpr, POSITIONS: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Square (program_id(1), program_id(2)) of G over part program_id(0) of its pairs of blocks, in every group."""
    if tl.program_id(1) <= tl.program_id(2):
        row = tl.program_id(1) % tiles * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(2) % tiles * ROWS + tl.arange(0, ROWS)
        c_left = c + tl.cast(tl.program_id(1) // tiles, tl.int64) * stride_ck
        c_right = c + tl.cast(tl.program_id(2) // tiles, tl.int64) * stride_ck
        place = tl.arange(0, POSITIONS)
        acc = tl.zeros([ROWS, ROWS], tl.float32)
        for group in range(groups):
            of_group = starts + group * (n + 1)
            lo = tl.load(of_group + tl.program_id(1) % tiles * ROWS)
            hi = tl.load(of_group + tl.minimum(tl.program_id(1) % tiles * ROWS + ROWS, n))
            lo2 = tl.load(of_group + tl.program_id(2) % tiles * ROWS)
            hi2 = tl.load(of_group + tl.minimum(tl.program_id(2) % tiles * ROWS + ROWS, n))
            blocks2 = tl.cdiv(hi2 - lo2, POSITIONS)
            work = tl.cdiv(hi - lo, POSITIONS) * blocks2
            # Parts take turns, another one first in each group: groups may have a block or two each.
            for item in range((tl.program_id(0) + group) % parts_of_work, work, parts_of_work):
                t = lo + item // blocks2 * POSITIONS + place
                u = lo2 + item % blocks2 * POSITIONS + place
                at_t = t.to(tl.int64)
                at_u = u.to(tl.int64)
                inputs = gram_tile(
                    x + at_t * stride_xp, t < hi, x + at_u * stride_xp, u < hi2, 0, I, stride_xi, BLOCK_D, WHOLE, UPCAST
                )
                outputs = gram_tile(
                    c_left + at_t * stride_cp, t < hi, c_right + at_u * stride_cp, u < hi2, 0, O, stride_co,
                    BLOCK_D, WHOLE, UPCAST,
                )  # fmt: skip
                # Read again for each block: kept, they would take the place of a tile's registers.
                left = belongs(t[None, :], of_group, row[:, None], n)
                right = belongs(u[:, None], of_group, column[None, :], n)
                acc += summed(inputs * outputs, left, right)
        part = tl.cast(tl.program_id(0), tl.int64) * R * R
        store(out + part, acc, row, column, tl.program_id(1) // tiles * n, tl.program_id(2) // tiles * n, n, R)


@triton.jit
def store(out, tile, row, column, above, left, n, R):
    """Rows `row` of n, from `above` on, by columns `column`, from `left` on, and their mirror image, in out [R, R]."""
    r = (above + row).to(tl.int64)[:, None]
    s = (left + column).to(tl.int64)[None, :]
    live = (row < n)[:, None] & (column < n)[None, :] & (r <= s)
    tl.store(out + r * R + s, tile, mask=live)
    tl.store(out + s * R + r, tile, mask=live)


def pairwise(x: Tensor, c: Tensor, starts: Tensor, dtype: torch.dtype, config: Config | None = None) -> Tensor:
    """G [K n, K n] of x [P, i], c [K, P, o] and offsets starts [g, n + 1], in `dtype` from sums in float32.

    Row r of group h sums over the positions from `starts[h, r]` to `starts[h, r + 1]`; offsets do not decrease in a
    group, and lie between 0 and P.
    """
    (K, P, o), i, (g, n) = c.shape, x.shape[1], (starts.shape[0], starts.shape[1] - 1)
    R = K * n
    out = common.empty((R, R), c)
    if 0 in (R, g, P, o, i):
        return out.zero_().to(dtype)
    config = config or config_for(common.arch_of(c), c.dtype, n, K, P, g)
    parts = out if config.splits == 1 else common.empty((config.splits, 1, R, R), c)
    tiles = ceil_div(n, config.constants["ROWS"])
    offsets = starts.to(torch.int32).contiguous()
    arguments = [x, c, offsets, parts, n, tiles, R, i, o, g, config.splits, *x.stride(), *c.stride()]
    whole = (o | i) % config.constants["BLOCK_D"] == 0
    common.launch(segments, (config.splits, K * tiles, K * tiles), arguments, config, WHOLE=whole)
    if config.splits > 1:
        sums.add_up(out, parts, None, n)
    return out.to(dtype)
