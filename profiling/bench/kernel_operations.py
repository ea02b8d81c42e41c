"""What the benchmark of kernels compares: per operation its operands, torch form, shapes, and the work it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.kernels import convolution, cross, gathered, norms, outer, rows, segments, weighted

Form = Callable[..., Tensor]
ACCUMULATED = torch.float32
VOCABULARY = 32_000


class Operation(NamedTuple):
    """What is compared: how operands are made, the torch form, and the multiply-adds that are needed."""

    make: Callable[..., tuple[Tensor, ...]]
    torch_form: Form
    work: Callable[..., int]
    shapes: tuple[tuple[int, ...], ...]


def _outer_operands(g: int, K: int, b: int, T: int, i: int, o: int) -> tuple[Tensor, ...]:
    return torch.randn(g, b, T, i), torch.randn(K, g, b, T, o)


def _images(K: int, b: int, groups: int, i: int, o: int, k: int, stride: int, side: int) -> tuple[Tensor, ...]:
    """x, c, and a weight of no outputs whose shape tells kernel and groups, of a convolution that keeps the borders."""
    x, c = torch.randn(b, groups * i, stride * side, stride * side), torch.randn(K, b, groups * o, side, side)
    return x, c, torch.empty(0, groups, k, k)


def _two_factors(g: int, i: int, o: int, K: int, b: int, T: int, L: int, n: int, S: int) -> tuple[Tensor, ...]:
    return *_outer_operands(g, K, b, T, i, o), *_outer_operands(g, L, n, S, i, o)


def _segments(K: int, i: int, o: int, g: int, n: int, most: int) -> tuple[Tensor, ...]:
    """x, c, and offsets of n segments of 0 to `most` positions in each of g groups, the same at each call."""
    starts = _starts(g, n, most)
    P = int(starts[-1, -1])
    return torch.randn(P, i), torch.randn(K, P, o), starts


def _starts(g: int, n: int, most: int) -> Tensor:
    lengths = torch.randint(most + 1, (g, n), generator=torch.Generator().manual_seed(0))
    ends = lengths.flatten().cumsum(0).view(g, n)
    return torch.cat([ends[:, :1] - lengths[:, :1], ends], 1)


def lengths(g: int, n: int, most: int) -> list[int]:
    """Positions of each group."""
    starts = _starts(g, n, most)
    return [int(positions) for positions in starts[:, -1] - starts[:, 0]]


def windowed(form: Form) -> Form:
    """A form for images with the weight of `_images` in the place of a window."""

    def on_images(x: Tensor, c: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        _, groups, k, _ = weight.shape
        stride = x.shape[-1] // c.shape[-1]
        return form(x, c, convolution.Window((k, k), (stride, stride), (k // 2, k // 2), (1, 1), groups), dtype)

    return on_images


def _pairs(n: int) -> int:
    return n * (n + 1) // 2


def accumulating(form: Form) -> Form:
    """A form that is told to add up in float32, or in float64 if that is what its operands are."""

    def accumulated(*operands: Tensor) -> Tensor:
        (*_, dtype) = (t.dtype for t in operands if t.is_floating_point())
        return form(*operands, torch.promote_types(dtype, ACCUMULATED))

    return accumulated


# Operations whose results are no Gram matrices.
NO_GRAMIANS = {"cross.product", "cross.pairwise", "cross.rows", "cross.gathered", "norms.pair", "weighted.outer"}
OPERATIONS: dict[str, Operation] = {
    "outer.product": Operation(
        _outer_operands,
        accumulating(outer.ROUTES["product"]),
        lambda g, K, b, T, i, o: g * (_pairs(b) * i + _pairs(K * b) * o),
        (
            (1, 1, 32, 1, 784, 1024),
            (1, 1, 256, 1, 1024, 1024),
            (1, 1, 2048, 1, 1024, 1024),
            (1, 1, 64, 1, 16384, 16384),
        ),
    ),
    "outer.pairwise": Operation(
        _outer_operands,
        accumulating(outer.ROUTES["pairwise"]),
        lambda g, K, b, T, i, o: g * (_pairs(b * T) * i + _pairs(K * b * T) * o),
        ((1, 1, 16, 16, 768, 3072), (1, 1, 64, 8, 768, 768), (1, 1, 256, 16, 768, 768)),
    ),
    "outer.rows": Operation(
        _outer_operands,
        accumulating(outer.ROUTES["rows"]),
        lambda g, K, b, T, i, o: g * i * o * (K * b * T + _pairs(K * b)),
        ((1, 1, 16, 64, 768, 768), (1, 1, 32, 64, 768, 3072), (1, 1, 32, 128, 256, 256)),
    ),
    "cross.product": Operation(
        lambda g, i, o, K, b, L, n: (*_outer_operands(g, K, b, 1, i, o), *_outer_operands(g, L, n, 1, i, o)),
        accumulating(cross.CROSS["product"]),
        lambda g, i, o, K, b, L, n: g * (b * n * i + K * b * L * n * o),
        ((1, 784, 1024, 1, 32, 1, 32), (1, 1024, 1024, 1, 512, 1, 64), (1, 4096, 4096, 2, 64, 1, 64)),
    ),
    "cross.pairwise": Operation(
        _two_factors,
        accumulating(cross.CROSS["pairwise"]),
        lambda g, i, o, K, b, T, L, n, S: g * (b * T * n * S * i + K * b * T * L * n * S * o),
        ((1, 768, 768, 1, 16, 16, 1, 16, 8), (1, 768, 3072, 1, 64, 16, 1, 32, 16)),
    ),
    "cross.rows": Operation(
        _two_factors,
        accumulating(cross.CROSS["rows"]),
        lambda g, i, o, K, b, T, L, n, S: g * i * o * (K * b * T + L * n * S + K * b * L * n),
        ((1, 256, 256, 1, 16, 64, 1, 16, 128), (1, 768, 3072, 1, 32, 64, 1, 32, 64)),
    ),
    "cross.gathered": Operation(
        lambda K, b, T, L, n, S, d: (
            *(torch.randint(b * T, (b, T)), torch.randn(K, b, T, d)),
            *(torch.randint(b * T, (n, S)), torch.randn(L, n, S, d)),
        ),
        accumulating(cross._gathered),
        # Each position of the second factor has an id in common with one of the first, in the mean.
        lambda K, b, T, L, n, S, d: K * L * n * S * d,
        ((1, 16, 512, 1, 16, 512, 768), (1, 64, 128, 1, 32, 128, 512)),
    ),
    "segments.pairwise": Operation(
        _segments,
        accumulating(segments._pairwise),
        lambda K, i, o, g, n, most: sum(_pairs(P) * i + K * _pairs(K * P) * o for P in lengths(g, n, most)),
        ((1, 768, 768, 1, 64, 32), (1, 768, 3072, 8, 32, 64), (1, 1024, 1024, 64, 64, 8)),
    ),
    "norms.pair": Operation(
        lambda K, b, T, i, o: (torch.randn(b, T, i), torch.randn(K, b, T, o)),
        accumulating(norms.OUTER["pair"]),
        lambda K, b, T, i, o: b * _pairs(T) * i + K * b * _pairs(T) * o,
        ((1, 64, 64, 768, 768), (1, 16, 512, 768, 3072), (1, 256, 16, 768, 768)),
    ),
    "gathered.pairwise": Operation(
        lambda K, b, T, d: (torch.randint(VOCABULARY, (b, T)), torch.randn(K, b, T, d)),
        accumulating(gathered._pairwise),
        # Two equal positions cost a product of d numbers; of distinct ids only each with itself does.
        lambda K, b, T, d: K * K * b * T * d,
        ((1, 16, 512, 768), (1, 64, 128, 512)),
    ),
    "rows": Operation(
        lambda R, d: (torch.randn(R, d),),
        accumulating(rows.gram_rows),
        lambda R, d: _pairs(R) * d,
        ((16, 1 << 24), (64, 1 << 20), (256, 4096)),
    ),
    "convolution.rows": Operation(
        _images,
        accumulating(windowed(convolution.rows)),
        lambda K, b, groups, i, o, k, stride, side: groups * i * o * k * k * (K * b * side * side + _pairs(K * b)),
        (
            (1, 32, 1, 64, 64, 3, 1, 32),
            (1, 32, 1, 128, 256, 3, 2, 8),
            (1, 64, 1, 3, 64, 7, 2, 112),
            (1, 32, 256, 1, 1, 3, 1, 28),
            (1, 32, 96, 1, 1, 7, 1, 56),
        ),
    ),
    "weighted.outer": Operation(
        lambda *shape: (*_outer_operands(*shape), torch.rand(shape[1] * shape[2])),
        weighted.weighted_outer,
        lambda g, K, b, T, i, o: g * b * T * o * (K + i),
        ((1, 1, 256, 1, 1024, 1024), (1, 1, 16, 512, 768, 3072), (1, 4, 64, 1, 4096, 4096)),
    ),
}
