"""Weighted sums of rows: what a backward pass computes, however many samples are taken at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gramjd.kernels import reference, weighted
from gramjd.kernels.cost import chunks_of
from tests.kernels.strategies import DTYPES, dtypes, error, memory, seeds, sizes, tensor
from tests.kernels.test_patches import CASES, Conv, convolutions, reference_rows


@given(st.tuples(*[sizes] * 6), dtypes, memory, memory, seeds)
def test_outer(shape: tuple[int, ...], dtype: torch.dtype, how: str, other: str, seed: int) -> None:
    g, K, b, T, i, o = shape
    x, c = tensor((g, b, T, i), dtype, how, seed), tensor((K, g, b, T, o), dtype, other, seed + 1)
    w = tensor((K * b,), torch.float64, "contiguous", seed + 2)
    got = weighted.weighted_outer(x, c, w.to(dtype))
    expected, without_signs = (
        reference.weighted_outer(*values) for values in ((x, c, w.to(dtype)), (x.abs(), c.abs(), w.to(dtype).abs()))
    )
    # Sums are made in the dtype of the gradient, as a backward pass makes them.
    assert error(got, expected, without_signs) < max(DTYPES[dtype][1], 4 * torch.finfo(dtype).eps)


def check(conv: Conv, K: int, b: int, how: str, seed: int, chunk: int) -> None:
    x = tensor((b, conv.groups * conv.i, *conv.spatial), torch.float64, how, seed)
    c = tensor((K, b, conv.groups * conv.o, *conv.out), torch.float64, how, seed + 1)
    w = tensor((K * b,), torch.float64, "contiguous", seed + 2)
    shape = (conv.groups * conv.o, conv.i, *conv.kernel)
    with chunks_of(chunk):
        got = weighted.weighted_convolution(x, c, w, shape, False, conv.options)
    rows = reference_rows(conv, x, c).reshape(K * b, -1)
    assert got.shape == shape
    assert error(got.flatten(), w @ rows, w.abs() @ rows.abs()) < 1e-13


@given(convolutions(), sizes, sizes, memory, seeds, st.sampled_from([1, 60, 1 << 18]))
def test_any_convolution(conv: Conv, K: int, b: int, how: str, seed: int, chunk: int) -> None:
    check(conv, K, b, how, seed, chunk)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 18])
@pytest.mark.parametrize("conv", CASES.values(), ids=CASES)
def test_convolutions(conv: Conv, chunk: int) -> None:
    check(conv, 2, 3, "contiguous", 0, chunk)
