"""Sums of outer products: every route is the definition, whatever the shape, the memory and the size of a chunk."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gramjd.kernels import outer, reference
from gramjd.kernels.cost import chunks_of
from gramjd.kernels.symmetric import mirrored
from tests.kernels.strategies import DTYPES, MEMORY, dtypes, error, memory, seeds, sizes, tensor

GENERAL = ("pairwise", "rows")
CHUNKS = (1, 7, 40, 1 << 20)
chunks = st.sampled_from(CHUNKS)
shapes = st.tuples(*[sizes] * 6)  # g, K, b, T, i, o
places = st.tuples(memory, memory)


def check(name: str, shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, str], seed: int, chunk: int) -> None:
    g, K, b, T, i, o = shape
    x = tensor((g, b, T, i), dtype, how[0], seed)
    c = tensor((K, g, b, T, o), dtype, how[1], seed + 1)
    into, limit = DTYPES[dtype]
    before = [t.clone() for t in (x, c)]
    with chunks_of(chunk):
        got = mirrored(outer.ROUTES[name](x, c, into))
    assert got.shape == (K * b, K * b)
    assert got.dtype == into
    assert error(got, reference.gram_outer(x, c), reference.gram_outer(x.abs(), c.abs())) < limit
    assert all(torch.equal(a, t) for a, t in zip(before, (x, c), strict=True))


@given(shapes, dtypes, places, seeds, st.sampled_from(GENERAL), chunks)
def test_general_routes(
    shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, str], seed: int, name: str, chunk: int
) -> None:
    check(name, shape, dtype, how, seed, chunk)


@given(shapes, dtypes, places, seeds)
def test_product(shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, str], seed: int) -> None:
    check("product", (*shape[:3], 1, *shape[4:]), dtype, how, seed, 1 << 20)


@given(shapes, dtypes, places, seeds, chunks)
def test_shared(shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, str], seed: int, chunk: int) -> None:
    check("shared", (*shape[:2], 1, *shape[3:]), dtype, how, seed, chunk)


EDGES = {
    "all ones": (1, 1, 1, 1, 1, 1),
    "one input": (2, 2, 3, 4, 1, 5),
    "one output": (2, 2, 3, 4, 5, 1),
    "one sample": (2, 3, 1, 4, 5, 3),
    "one position": (2, 3, 4, 1, 5, 3),
    "one row, one group": (1, 1, 7, 3, 5, 2),
    "primes": (3, 2, 7, 11, 13, 5),
    "wide": (1, 2, 3, 2, 130, 67),
    "long": (1, 2, 3, 67, 2, 3),
}


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", EDGES.values(), ids=EDGES)
def test_every_route_that_applies(shape: tuple[int, ...], chunk: int) -> None:
    _, _, b, T, _, _ = shape
    names = [*GENERAL, *["product"] * (T == 1), *["shared"] * (b == 1)]
    for name in names:
        check(name, shape, torch.float64, ("contiguous", "contiguous"), 3, chunk)


@pytest.mark.parametrize("how", MEMORY)
@pytest.mark.parametrize("shape", EDGES.values(), ids=EDGES)
def test_gram_outer_takes_an_allowed_route(shape: tuple[int, ...], how: str) -> None:
    g, K, b, T, i, o = shape
    x, c = tensor((g, b, T, i), torch.float64, how, 1), tensor((K, g, b, T, o), torch.float64, how, 2)
    assert outer.extent(x, c) == shape
    sizes = reference.gram_outer(x.abs(), c.abs())
    assert error(mirrored(outer.gram_outer(x, c, torch.float64)), reference.gram_outer(x, c), sizes) < 1e-13


def test_routes_by_cost() -> None:
    """One position is a product; few positions of wide layers are paired; many, or a shared batch, are not."""
    assert outer.route(outer.Extent(1, 1, 32, 1, 512, 512)) == "product"
    assert outer.route(outer.Extent(1, 1, 32, 4, 512, 512)) == "pairwise"
    assert outer.route(outer.Extent(1, 1, 32, 512, 64, 64)) == "rows"
    assert outer.route(outer.Extent(1, 8, 1, 16, 512, 512)) == "shared"
    assert outer.route(outer.Extent(1, 8, 1, 4096, 16, 16)) == "rows"


def test_reference_by_hand() -> None:
    """J_0 = 2 [1, 3] + 1 [0, 1] = [2, 7], J_1 = -[1, 1]: G = [[53, -9], [-9, 2]]."""
    x = torch.tensor([[[1.0, 3.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]]).view(1, 2, 2, 2)
    c = torch.tensor([[[2.0], [1.0]], [[-1.0], [5.0]]]).view(1, 1, 2, 2, 1)
    expected = torch.tensor([[53.0, -9.0], [-9.0, 2.0]])
    assert torch.equal(reference.gram_outer(x, c), expected.double())
    for name in GENERAL:
        assert torch.equal(mirrored(outer.ROUTES[name](x, c, torch.float32)), expected)


@given(shapes, dtypes, places, seeds)
def test_outer_rows(shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, str], seed: int) -> None:
    _, K, b, T, i, o = shape
    x, c = tensor((b, T, i), dtype, how[0], seed), tensor((K, b, T, o), dtype, how[1], seed + 1)
    into, limit = DTYPES[dtype]
    got = outer.outer_rows(x, c, into)
    expected, without_signs = (
        torch.einsum("bti,kbto->kboi", x.double(), c.double()) for x, c in ((x, c), (x.abs(), c.abs()))
    )
    assert error(got, expected, without_signs) < limit
