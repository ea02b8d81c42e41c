"""Gram matrix of the rows of a convolution's weight, in chunks of rows that stay in cache.

    J_(k,n)[g, o, i, q] = sum_p c_(k,n)[g, o, p] x_n[g, i, p stride + q dilation - padding]

(q kernel offsets, p the P output pixels; R = K b rows.) Routes:

    rows      chunks of J, then J J^T      2 R P g i q o + 2 R^2 g i q o operations
    pairwise  as an outer product over P positions of i q inputs and o outputs, for few pixels: see `outer`

The q-fold patch matrix is never formed whole, but for some inputs and samples at a time: they stay in cache, where
unfolding them costs a tenth of the products. (Products of shifted views, which need less of it, were slower on a CPU.)
Plain convolutions of wide images need none of it: with the samples as groups, their rows are one weight gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.kernels import dispatch, outer
from gramjd.kernels.cost import Constants, chunk, constants_of
from gramjd.kernels.patches import convolution_rows, padded, patches
from gramjd.kernels.symmetric import add_gram, even, mirrored
from gramjd.kernels.tracing import square, whole

# On CPUs the library's weight gradient with samples as groups was 1.1 to 2.3 times faster than products of patches for
# images at least this wide with at least so many channels, and slower for narrower ones.
WIDE, CHANNELS = 6, 8
# Channels that the library takes at a time; other numbers are padded to it.
BLOCK = 16
# Channels of a call at most, and how often its result is in memory: the shape to fill, the library's own before and
# after it is reordered, ours. Where these leave the cache a call is up to five times slower.
MOST_CHANNELS, COPIES = 64, 4
# A product with fewer columns than this runs well below the machine's peak.
COLUMNS = 64


class Window(NamedTuple):
    """A convolution's geometry: a number for each spatial dimension, and the groups."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int


class Sizes(NamedTuple):
    """The sizes that decide route and chunks: i and o are channels per group, q kernel offsets, P output pixels."""

    K: int
    b: int
    groups: int
    i: int
    o: int
    q: int
    P: int


class Steps(NamedTuple):
    """Groups, inputs and outputs that a chunk of the rows holds, and samples that are unfolded at a time."""

    groups: int
    i: int
    o: int
    samples: int


def sizes(x: Tensor, c: Tensor, w: Window) -> Sizes:
    """Sizes of x [b, groups i, *spatial] and c [K, b, groups o, *out]; stacked inputs are samples of one row each."""
    K, b = (1, x.shape[0] * c.shape[1]) if x.ndim == c.ndim else c.shape[:2]
    i, o = x.shape[-len(w.kernel) - 1] // w.groups, c.shape[2] // w.groups
    return Sizes(K, b, w.groups, i, o, math.prod(w.kernel), math.prod(c.shape[3:]))


def steps(s: Sizes) -> Steps:
    """The largest steps whose chunks keep to `cost.chunk()`, but products of at least `COLUMNS` columns."""
    R = s.K * s.b
    group = max(1, R * s.i * s.o * s.q)
    if s.K == 1 and s.groups > 1 and group <= chunk():
        g, i, o = even(s.groups, chunk() // group), s.i, s.o
    else:
        g = 1
        i = even(s.i, max(-(-COLUMNS // s.q), chunk() // max(1, R * s.o * s.q)))
        o = even(s.o, max(COLUMNS, chunk() // max(1, R * i * s.q)))
    return Steps(g, i, o, even(s.b, chunk() // max(1, g * i * s.q * s.P)))


def unstacked(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Stacked inputs [K, b, ..] beside one cotangent (a transposed convolution) as K b samples of one row each."""
    if x.ndim < c.ndim:
        return x, c
    return x.flatten(0, 1), c.expand(x.shape[0], *c.shape[1:]).flatten(0, 1)[None]


def row_chunks(x: Tensor, c: Tensor, w: Window, dtype: torch.dtype) -> Iterator[Tensor]:
    """Parts J [b K, columns] of the rows, in any order; each is overwritten by the next."""
    s = sizes(x, c, w)
    n = steps(s)
    cotangents = c.detach().reshape(s.K, s.b, s.groups, s.o, s.P)
    if as_groups(s, w, c.shape[3:], dtype, c.device.type):
        yield from _grouped_chunks(x.detach(), c.detach()[0].to(dtype), s, w)
        return
    J = torch.empty(s.b * n.groups * s.K * n.o * n.i * s.q, dtype=dtype, device=c.device)
    for g in range(0, s.groups, n.groups):
        for i in range(0, s.i, n.i):
            inputs = x.detach()[:, g * s.i + i : g * s.i + min(i + n.i, s.i) + (min(n.groups, s.groups - g) - 1) * s.i]
            for o in range(0, s.o, n.o):
                outputs = cotangents[:, :, g : g + n.groups, o : o + n.o]
                yield _chunk_of_rows(inputs, outputs, w, c.shape[3:], n.samples, J)


def as_groups(s: Sizes, w: Window, out: Sequence[int], dtype: torch.dtype, device: str) -> bool:
    """Returns True if the rows are best formed as one weight gradient whose groups are the samples."""
    plain = s.K == 1 and w.groups == 1 and len(out) == 2 and {*w.stride, *w.dilation} == {1}
    # A plan is made on meta tensors.
    return plain and device in ("cpu", "meta") and dtype == torch.float32 and out[-1] >= WIDE and s.i >= CHANNELS


def _grouped_chunks(x: Tensor, c: Tensor, s: Sizes, w: Window) -> Iterator[Tensor]:
    """Parts J [b, columns] of the rows from x [b, i, h, w] and c [b, o, h', w']."""
    step_o = in_blocks(s.o, min(MOST_CHANNELS, chunk() // max(1, s.b * min(s.i, BLOCK) * s.q)))
    step_i = in_blocks(s.i, min(MOST_CHANNELS, chunk() // max(1, s.b * step_o * s.q)))
    J = torch.empty(s.b * step_i * step_o * s.q, dtype=c.dtype, device=c.device)
    for i in range(0, s.i, step_i):
        for o in range(0, s.o, step_o):
            inputs, outputs = x[:, i : i + step_i], c[:, o : o + step_o]
            rows = J[: s.b * inputs.shape[1] * outputs.shape[1] * s.q].view(s.b, -1)
            _fill(rows, inputs, outputs, w)
            yield rows


def _fill(rows: Tensor, x: Tensor, c: Tensor, w: Window) -> None:
    """Write the rows [b, ..] of x [b, i, h, w] and c [b, o, h', w'], o i q elements each, some samples at a time."""
    samples = even(len(rows), chunk() // max(1, COPIES * rows[0].numel()))
    for part, inputs, outputs in zip(rows.split(samples), x.split(samples), c.split(samples), strict=True):
        part.copy_(_weight_gradients(inputs, outputs, w).view(part.shape))


def all_rows(x: Tensor, c: Tensor, w: Window, dtype: torch.dtype) -> Tensor:
    """The rows [K b, groups o i q] of x [b, groups i, *spatial] and c [K, b, groups o, *out], at once."""
    s = sizes(x, c, w)
    if not as_groups(s, w, c.shape[3:], dtype, c.device.type):
        return convolution_rows(x, c, *w, dtype=dtype).reshape(s.K * s.b, -1)
    J = torch.empty(s.b, s.o, s.i, s.q, dtype=dtype, device=c.device)
    inputs, outputs = x.split(MOST_CHANNELS, 1), c[0].to(dtype).split(MOST_CHANNELS, 1)
    for half, of in zip(J.split(MOST_CHANNELS, 1), outputs, strict=True):
        for part, given in zip(half.split(MOST_CHANNELS, 2), inputs, strict=True):
            _fill(part, given, of, w)
    return J.flatten(1)


def in_blocks(channels: int, most: int) -> int:
    """All channels if at most `most`, else whole blocks of them.

    >>> in_blocks(40, 64), in_blocks(64, 40), in_blocks(64, 3)
    (40, 32, 16)
    """
    return channels if channels <= most else max(BLOCK, most // BLOCK * BLOCK)


def _weight_gradients(x: Tensor, c: Tensor, w: Window) -> Tensor:
    """Rows [b, o i q] from inputs [b, i, h, w] and cotangents [b, o, h', w']."""
    b, i, o = x.shape[0], x.shape[1], c.shape[1]
    found = torch.ops.aten.convolution_backward(
        c.reshape(1, b * o, *c.shape[2:]),
        x.to(c.dtype).reshape(1, b * i, *x.shape[2:]),
        c.new_empty(b * o, i, *w.kernel),
        None,
        list(w.stride),
        list(w.padding),
        list(w.dilation),
        False,
        [0] * len(w.stride),
        b,
        [False, True, False],
    )
    rows: Tensor = found[1]
    return rows.view(b, -1)


def _chunk_of_rows(x: Tensor, c: Tensor, w: Window, out: Sequence[int], samples: int, J: Tensor) -> Tensor:
    K, b, g, o, P = c.shape
    columns = x.shape[1] // g * math.prod(w.kernel)
    J = J[: b * g * K * o * columns].view(b * g, K * o, columns)
    for lo in range(0, b, samples):
        part = slice(lo, lo + samples)
        left = c[:, part].to(J.dtype).permute(1, 2, 0, 3, 4).reshape(-1, K * o, P)
        source = padded(x[part].to(J.dtype), w.kernel, out, w.stride, w.padding, w.dilation)
        right = patches(source, w.kernel, out, w.stride, w.dilation).reshape(len(left), columns, P)
        torch.bmm(left, right.mT, out=J[lo * g : lo * g + len(left)])
        del left, source, right  # before the next ones are made
    return J.view(b * K, -1)


def extent(s: Sizes) -> outer.Extent:
    """The convolution as an outer product over output pixels."""
    return outer.Extent(s.groups, s.K, s.b, s.P, s.i * s.q, s.o)


def route(s: Sizes, constants: Constants | None = None) -> str:
    """`"product"` or `"pairwise"` where the outer product takes that route, else `"rows"`.

    The patches that pairs need are small then.
    """
    name = outer.route(extent(s), constants)
    return name if name in ("product", "pairwise") else "rows"


def operations(route: str, s: Sizes) -> int:
    """Multiply-adds of a route."""
    return outer.operations(route, extent(s))


def gram_convolution(x: Tensor, c: Tensor, w: Window, dtype: torch.dtype) -> Tensor:
    """G [K b, K b], upper, of x [b, groups i, *spatial] and c [K, b, groups o, *out] by the quicker route.

    Instead of the cotangent the input may be stacked, [K, b, ..] beside c of K = 1: a transposed convolution.
    """
    return _gram(x, c, *w, dtype)


@whole(
    "convolution(Tensor x, Tensor c, int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, "
    "ScalarType dtype) -> Tensor",
    lambda x, c, *window_and_dtype: square(
        c, window_and_dtype[-1], x.shape[0] if x.ndim == c.ndim else c.shape[0], c.shape[1]
    ),
)
def _gram(
    x: Tensor,
    c: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    dtype: torch.dtype,
) -> Tensor:
    w = Window(kernel, stride, padding, dilation, groups)
    x, c = unstacked(x, c)
    s = sizes(x, c, w)
    name = route(s, constants_of(c.device.type, dtype))
    if name != "rows":
        return outer.run(name, *as_outer(x, c, w), dtype)
    run = dispatch.implementation("convolution.rows", c.device, x.dtype, c.dtype, dtype) or rows
    return run(x, c, w, dtype)


def rows(x: Tensor, c: Tensor, w: Window, dtype: torch.dtype) -> Tensor:
    """G [K b, K b], upper, from chunks of the rows, for arguments as above but stacked inputs."""
    s = sizes(x, c, w)
    R = s.K * s.b
    G = torch.zeros(R, R, dtype=dtype, device=c.device)
    for J in row_chunks(x, c, w, dtype):
        add_gram(G, J)
    return G if s.K == 1 else mirrored(G).view(s.b, s.K, s.b, s.K).permute(1, 0, 3, 2).reshape(R, R)


def as_outer(x: Tensor, c: Tensor, w: Window) -> tuple[Tensor, Tensor]:
    """x [groups, b, P, i q] and c [K, groups, b, P, o] whose outer products over P are the rows."""
    s, out = sizes(x, c, w), c.shape[3:]
    source = padded(x, w.kernel, out, w.stride, w.padding, w.dilation)
    view = patches(source, w.kernel, out, w.stride, w.dilation).reshape(s.b, s.groups, s.i * s.q, s.P)
    return view.permute(1, 0, 3, 2), c.reshape(s.K, s.b, s.groups, s.o, s.P).permute(0, 2, 1, 4, 3)
