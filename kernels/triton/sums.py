"""Second stage of a sum that was spread over many programs: the parts are added in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gramjd.kernels.triton import common
from gramjd.kernels.triton.common import Config, ceil_div, store_symmetric

FINISH = Config({"BLOCK": 16, "SPLITS": 8}, num_warps=4, num_stages=1)


@triton.jit
def added(sums, r, s, size, parts, stride, live, SPLITS: tl.constexpr):
    """Entries (r, s) of the sum of `parts` matrices [size, size]."""
    at = r * size + s
    total = tl.zeros(live.shape, tl.float32)
    for first in range(0, parts, SPLITS):
        part = first + tl.arange(0, SPLITS)
        here = (part < parts)[:, None, None] & live[None, :, :]
        values = tl.load(sums + part.to(tl.int64)[:, None, None] * stride + at[None, :, :], mask=here, other=0.0)
        total += tl.sum(values, axis=0)
    return total


@triton.jit
def finish(
    out, sums_c, sums_x, R, b, groups, splits_c, splits_x,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, TIMES_X: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tile of G from the partial sums, both triangles."""
    if tl.program_id(0) <= tl.program_id(1):
        row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        r = row.to(tl.int64)[:, None]
        s = column.to(tl.int64)[None, :]
        live = (r <= s) & (s < R)
        square = tl.cast(R, tl.int64) * R
        tile = tl.zeros([BLOCK, BLOCK], tl.float32)
        for group in range(groups):
            term = added(sums_c + group * square, r, s, R, splits_c, groups * square, live, SPLITS)
            if TIMES_X:
                inner = tl.cast(b, tl.int64) * b
                term *= added(sums_x + group * inner, r % b, s % b, b, splits_x, groups * inner, live, SPLITS)
            tile += term
        store_symmetric(out, tile, row, column, R)


def add_up(out: Tensor, sums_c: Tensor, sums_x: Tensor | None, b: int) -> None:
    """Fill out [R, R] with the sum over g of two factors: the sums over parts of sums_c and of sums_x, if given.

    sums_c [parts, g, R, R] and sums_x [parts, g, b, b].
    """
    splits_c, g, R, _ = sums_c.shape
    other = sums_c if sums_x is None else sums_x
    tiles = ceil_div(R, FINISH.constants["BLOCK"])
    arguments = [out, sums_c, other, R, b, g, splits_c, other.shape[0]]
    common.launch(finish, (tiles, tiles), arguments, FINISH, TIMES_X=sums_x is not None)
