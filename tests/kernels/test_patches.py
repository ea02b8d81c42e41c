"""Per-sample weight gradients of convolutions, against one float64 backward of the convolution a row."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gramjd.kernels import patches, reference
from gramjd.kernels.cost import chunks_of
from tests.kernels.strategies import error, memory, seeds, tensor


class Conv(NamedTuple):
    """Sizes of a convolution; `i` and `o` are channels a group."""

    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    i: int
    o: int

    @property
    def options(self) -> dict[str, Any]:
        return {name: list(getattr(self, name)) for name in ("stride", "padding", "dilation")} | {"groups": self.groups}

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.groups * self.o, self.i, *self.kernel)

    @property
    def out(self) -> tuple[int, ...]:
        sizes = zip(self.spatial, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)


@st.composite
def convolutions(draw: st.DrawFn) -> Conv:
    D = draw(st.integers(1, 3))
    most = (12, 6, 4)[D - 1]

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(D))

    kernel, stride, padding, dilation = each(1, 3), each(1, 3), each(0, 2), each(1, 2)
    needed = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    spatial = tuple(draw(st.integers(n, max(n, most))) for n in needed)
    groups, i, o = (draw(st.integers(1, 3)) for _ in range(3))
    return Conv(spatial, kernel, stride, padding, dilation, groups, i, o)


def reference_rows(conv: Conv, x: Tensor, c: Tensor) -> Tensor:
    """J [K, b, *weight] by autograd in float64."""
    options = conv.options | {"transposed": False, "output_padding": [0] * len(conv.kernel)}
    return reference.convolution_rows(x, c, conv.weight, **options)


def check(conv: Conv, K: int, b: int, how: str, seed: int, dtype: torch.dtype = torch.float64) -> None:
    limit = 1e-13 if dtype == torch.float64 else 1e-6
    x = tensor((b, conv.groups * conv.i, *conv.spatial), dtype, how, seed)
    c = tensor((K, b, conv.groups * conv.o, *conv.out), dtype, how, seed + 1)
    into = torch.promote_types(dtype, torch.float32)
    got = patches.convolution_rows(x, c, conv.kernel, **conv.options, dtype=into)
    assert got.dtype == into
    expected, without_signs = reference_rows(conv, x, c), reference_rows(conv, x.abs(), c.abs())
    assert error(got.reshape(K, b, *conv.weight), expected, without_signs) < limit


@given(convolutions(), st.integers(1, 3), st.integers(1, 3), memory, seeds, st.sampled_from([1, 60, 1 << 20]))
def test_rows_of_any_convolution(conv: Conv, K: int, b: int, how: str, seed: int, chunk: int) -> None:
    with chunks_of(chunk):
        check(conv, K, b, how, seed)


CASES = {
    "1x1": Conv((5, 4), (1, 1), (1, 1), (0, 0), (1, 1), 1, 3, 2),
    "strided 1x1": Conv((5, 4), (1, 1), (2, 3), (0, 0), (1, 1), 1, 3, 2),
    "depthwise": Conv((6, 5), (3, 3), (1, 1), (1, 1), (1, 1), 4, 1, 1),
    "grouped": Conv((6, 5), (3, 2), (2, 1), (1, 0), (1, 2), 2, 2, 3),
    "kernel as wide as the input": Conv((3, 4), (3, 4), (1, 1), (0, 0), (1, 1), 1, 2, 2),
    "stride that leaves a rest": Conv((8,), (3,), (3,), (0,), (1,), 1, 2, 2),
    "padding wider than the kernel": Conv((2,), (2,), (1,), (3,), (1,), 1, 2, 2),
    "dilated": Conv((9,), (3,), (1,), (2,), (3,), 1, 2, 2),
    "three dimensions": Conv((3, 4, 5), (2, 3, 2), (1, 2, 1), (0, 1, 1), (1, 1, 2), 1, 2, 2),
    "one channel": Conv((6,), (3,), (1,), (0,), (1,), 1, 1, 1),
}


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
@pytest.mark.parametrize("conv", CASES.values(), ids=CASES)
def test_chunks_of_samples(conv: Conv, chunk: int) -> None:
    with chunks_of(chunk):
        check(conv, 2, 5, "contiguous", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_small_floats_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    check(CASES["grouped"], 2, 5, "offset", 0, dtype)


@given(convolutions(), st.integers(1, 3), st.integers(1, 3), seeds, st.sampled_from([1, 60, 1 << 20]))
def test_transposed_roles(conv: Conv, K: int, b: int, seed: int, chunk: int) -> None:
    """Stacked rows in the place of the input, a plain tensor in the place of the cotangent."""
    x = tensor((K, b, conv.groups * conv.i, *conv.spatial), torch.float64, "contiguous", seed)
    c = tensor((1, b, conv.groups * conv.o, *conv.out), torch.float64, "contiguous", seed + 1)
    with chunks_of(chunk):
        got = patches.convolution_rows(x, c, conv.kernel, **conv.options, dtype=torch.float64)
    expected = torch.stack([reference_rows(conv, row, c)[0] for row in x])
    without_signs = torch.stack([reference_rows(conv, row.abs(), c.abs())[0] for row in x])
    assert error(got.reshape(expected.shape), expected, without_signs) < 1e-13
