"""Gram matrices of convolutions: chunks of any size and pairs of pixels give the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gramjd.kernels import convolution, cost, reference
from gramjd.kernels.convolution import Window
from gramjd.kernels.cost import chunks_of
from gramjd.kernels.symmetric import mirrored
from tests.kernels.strategies import error, memory, seeds, tensor
from tests.kernels.test_patches import CASES, Conv, convolutions, reference_rows

chunks = st.sampled_from([1, 60, 1 << 20])


def window(conv: Conv) -> Window:
    return Window(conv.kernel, conv.stride, conv.padding, conv.dilation, conv.groups)


def operands(conv: Conv, K: int, b: int, how: str, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = tensor((b, conv.groups * conv.i, *conv.spatial), dtype, how, seed)
    return x, tensor((K, b, conv.groups * conv.o, *conv.out), dtype, how, seed + 1)


def definition(conv: Conv, x: Tensor, c: Tensor) -> Tensor:
    J = reference_rows(conv, x, c).flatten(0, 1).flatten(1)
    return J @ J.T


def check(
    conv: Conv, K: int, b: int, how: str, seed: int, chunk: int, route: str, dtype: torch.dtype = torch.float64
) -> None:
    x, c = operands(conv, K, b, how, seed, dtype)
    into = torch.promote_types(dtype, torch.float32)
    with pytest.MonkeyPatch.context() as patch, chunks_of(chunk):
        patch.setattr(convolution, "COLUMNS", min(chunk, convolution.COLUMNS))
        patch.setattr(convolution, "route", lambda s, known: route)
        got = mirrored(convolution.gram_convolution(x, c, window(conv), into))
    assert got.dtype == into
    sizes = definition(conv, x.abs(), c.abs())
    assert error(got, definition(conv, x, c), sizes) < (1e-13 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("route", ["rows", "pairwise"])
@given(convolutions(), st.integers(1, 3), st.integers(1, 3), memory, seeds, chunks)
def test_any_convolution(route: str, conv: Conv, K: int, b: int, how: str, seed: int, chunk: int) -> None:
    check(conv, K, b, how, seed, chunk, route)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
@pytest.mark.parametrize("conv", CASES.values(), ids=CASES)
def test_chunks(conv: Conv, chunk: int) -> None:
    check(conv, 1, 5, "contiguous", 0, chunk, "rows")
    check(conv, 2, 3, "contiguous", 0, chunk, "rows")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_small_floats_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    check(CASES["grouped"], 2, 5, "offset", 0, 1 << 20, "rows", dtype)


@given(convolutions(), st.integers(1, 3), st.integers(1, 3), seeds, chunks)
def test_transposed_roles(conv: Conv, K: int, b: int, seed: int, chunk: int) -> None:
    """Stacked rows in the place of the input, a plain tensor in the place of the cotangent."""
    x = tensor((K, b, conv.groups * conv.i, *conv.spatial), torch.float64, "contiguous", seed)
    c = tensor((1, b, conv.groups * conv.o, *conv.out), torch.float64, "contiguous", seed + 1)
    with chunks_of(chunk):
        got = mirrored(convolution.gram_convolution(x, c, window(conv), torch.float64))
    J = torch.stack([reference_rows(conv, row, c)[0] for row in x]).flatten(0, 1).flatten(1)
    H = torch.stack([reference_rows(conv, row.abs(), c.abs())[0] for row in x]).flatten(0, 1).flatten(1)
    assert error(got, J @ J.T, H @ H.T) < 1e-13


@given(st.tuples(*[st.integers(1, 64)] * 5), st.sampled_from([1, 9, 49]), st.integers(1, 1024))
def test_chunks_keep_to_the_chunk(numbers: tuple[int, ...], q: int, P: int) -> None:
    """But for a fast product's columns, a chunk of rows and an unfolded chunk have no more elements than allowed."""
    s = convolution.Sizes(*numbers, q=q, P=P)
    n = convolution.steps(s)
    R, least = s.K * s.b, -(-convolution.COLUMNS // q)
    assert all(1 <= part <= whole for part, whole in zip(n, (s.groups, s.i, s.o, s.b), strict=True))
    chunk = R * n.groups * n.i * n.o * q
    assert chunk <= cost.CHUNK or (n.groups == 1 and n.i <= least and n.o <= convolution.COLUMNS)
    assert n.samples == 1 or n.samples * n.groups * n.i * q * P <= cost.CHUNK


def test_few_pixels_are_paired() -> None:
    """The last layers of a residual network; many pixels make chunks of rows."""
    assert convolution.route(convolution.Sizes(1, 32, 1, 256, 512, 9, 16)) == "pairwise"
    assert convolution.route(convolution.Sizes(1, 32, 1, 64, 64, 9, 256)) == "rows"
    assert convolution.route(convolution.Sizes(1, 32, 1, 64, 64, 9, 1)) == "product"


@given(convolutions(), st.integers(1, 2), st.integers(1, 3), seeds)
def test_as_an_outer_product(conv: Conv, K: int, b: int, seed: int) -> None:
    x, c = operands(conv, K, b, "contiguous", seed, torch.float64)
    got = reference.gram_outer(*convolution.as_outer(x, c, window(conv)))
    assert error(got, definition(conv, x, c), definition(conv, x.abs(), c.abs())) < 1e-13


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("chunk", [1 << 9, 1 << 17, 1 << 20])
def test_wide_images_take_the_samples_as_groups(padding: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All channels at once or blocks of them, and some samples at a time."""
    taken: list[int] = []
    original = convolution._weight_gradients
    monkeypatch.setattr(convolution, "_weight_gradients", lambda *a: taken.append(1) or original(*a))
    w = Window((3, 3), (1, 1), (padding, padding), (1, 1), 1)
    x = torch.randn(35, 20, 15, 14)
    c = torch.randn(1, 35, 18, 13 + 2 * padding, 12 + 2 * padding)
    with chunks_of(chunk):
        got = mirrored(convolution.gram_convolution(x, c, w, torch.float32))
    assert len(taken) == {1 << 20: 1, 1 << 17: 4, 1 << 9: 4 * 35}[chunk]
    options = {"stride": [1, 1], "padding": [padding] * 2, "dilation": [1, 1], "transposed": False}
    J = reference.convolution_rows(x, c, (18, 20, 3, 3), **options, output_padding=[0, 0], groups=1).flatten(0, 1)
    J = J.flatten(1)
    torch.testing.assert_close(got.double(), J @ J.T, rtol=1e-4, atol=1e-2)
