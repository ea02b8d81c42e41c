"""Squared lengths of rows are the diagonal of the Gram matrix, for every kind of factor and every route."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gramjd.kernels import norms, outer, reference
from gramjd.kernels.convolution import Window
from gramjd.kernels.cost import chunks_of
from tests.kernels.strategies import CPU, DTYPES, IDEAL, dtypes, error, memory, seeds, sizes, tensor
from tests.kernels.test_patches import CASES, Conv, convolutions, reference_rows

CHUNKS = (1, 7, 40, 1 << 20)
chunks = st.sampled_from(CHUNKS)
shapes = st.tuples(*[sizes] * 6)  # g, K, b, T, i, o


@pytest.mark.parametrize("name", ["pair", "rows", "single", None])
@given(shapes, dtypes, st.tuples(memory, memory), seeds, chunks)
def test_outer(
    name: str | None, shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, str], seed: int, chunk: int
) -> None:
    g, K, b, T, i, o = shape
    T = 1 if name == "single" else T
    x, c = tensor((g, b, T, i), dtype, how[0], seed), tensor((K, g, b, T, o), dtype, how[1], seed + 1)
    into, limit = DTYPES[dtype]
    with pytest.MonkeyPatch.context() as patch, chunks_of(chunk):
        if name:
            patch.setattr(norms, "outer_route", lambda e, known: name)
        got = norms.norms_outer(x, c, into)
    assert got.dtype == into
    expected, without_signs = (reference.gram_outer(*pair).diagonal() for pair in ((x, c), (x.abs(), c.abs())))
    assert error(reference.norms_outer(x, c), expected, without_signs) < 1e-14
    assert got.shape == expected.shape
    assert error(got, expected, without_signs) < limit


def counted(name: str, e: outer.Extent) -> int:
    """Multiply-adds of a route's products, as they run on tensors without data."""
    x, c = torch.empty(e.b, e.T, e.i, device="meta"), torch.empty(e.K, e.b, e.T, e.o, device="meta")
    with FlopCounterMode(display=False) as counter, chunks_of(1 << 40):
        norms.OUTER[name](x, c, torch.float32)
    return counter.get_total_flops() // 2


@given(st.tuples(*[st.integers(1, 600)] * 5))
def test_estimates_are_as_counted(shape: tuple[int, ...]) -> None:
    """Where nothing else costs, seconds are multiply-adds, and the fewest are chosen."""
    e = outer.Extent(1, *shape)
    counts = {name: counted(name, e) for name in norms.ESTIMATES}
    with chunks_of(1 << 40):
        for name, count in counts.items():
            assert norms.estimate(name, e, IDEAL).seconds == pytest.approx(count)
        chosen = norms.outer_route(e, IDEAL)
    assert chosen == "single" if e.T == 1 else counts[chosen] == min(counts.values())


def test_routes_follow_the_length() -> None:
    """Pairs of few positions cost less than a wide layer's gradient; for many it is the other way round."""
    assert norms.outer_route(outer.Extent(1, 1, 32, 16, 512, 512), CPU) == "pair"
    assert norms.outer_route(outer.Extent(1, 1, 32, 1024, 128, 128), CPU) == "rows"


@given(st.tuples(*[sizes] * 4), st.sampled_from([1, 2, 5, 40]), dtypes, memory, seeds, chunks)
def test_gathered(shape: tuple[int, ...], V: int, dtype: torch.dtype, how: str, seed: int, chunk: int) -> None:
    K, b, T, d = shape
    ids = torch.randint(V, (b, T), generator=torch.Generator().manual_seed(seed))
    c = tensor((K, b, T, d), dtype, how, seed)
    into, limit = DTYPES[dtype]
    with chunks_of(chunk):
        got = norms.norms_gathered(ids, c, into)
    assert got.dtype == into
    expected, without_signs = (reference.gram_gathered(ids, v, V).diagonal() for v in (c, c.abs()))
    assert error(got, expected, without_signs) < limit


@given(sizes, sizes, dtypes, memory, seeds)
def test_rows(R: int, d: int, dtype: torch.dtype, how: str, seed: int) -> None:
    J = tensor((R, d), dtype, how, seed)
    into, limit = DTYPES[dtype]
    got = norms.norms_rows(J, into)
    assert got.dtype == into
    assert error(got, torch.einsum("rd,rd->r", J.double(), J.double())) < limit


@given(convolutions(), sizes, sizes, memory, seeds, st.sampled_from([1, 60, 1 << 20]))
def test_convolution(conv: Conv, K: int, b: int, how: str, seed: int, chunk: int) -> None:
    x = tensor((b, conv.groups * conv.i, *conv.spatial), torch.float64, how, seed)
    c = tensor((K, b, conv.groups * conv.o, *conv.out), torch.float64, how, seed + 1)
    with chunks_of(chunk):
        got = norms.norms_convolution(x, c, Window(conv.kernel, **conv.options), torch.float64)
    expected, without_signs = (
        reference_rows(conv, *pair).flatten(0, 1).flatten(1).square().sum(1) for pair in ((x, c), (x.abs(), c.abs()))
    )
    assert error(got, expected, without_signs) < 1e-13


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_transposed_convolution(chunk: int) -> None:
    """Stacked rows in the place of the input."""
    conv = CASES["grouped"]
    x = tensor((3, 2, conv.groups * conv.i, *conv.spatial), torch.float64, "contiguous", 0)
    c = tensor((1, 2, conv.groups * conv.o, *conv.out), torch.float64, "contiguous", 1)
    with chunks_of(chunk):
        got = norms.norms_convolution(x, c, Window(conv.kernel, **conv.options), torch.float64)
    expected = torch.stack([reference_rows(conv, row, c)[0] for row in x]).flatten(0, 1).flatten(1).square().sum(1)
    assert error(got, expected) < 1e-13
