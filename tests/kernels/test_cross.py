"""Inner products between rows of two factors: every route is the definition, also where their sizes differ."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gramjd.kernels import cross, outer, reference
from gramjd.kernels.cost import chunks_of
from tests.kernels.strategies import CPU, DTYPES, IDEAL, countable, dtypes, error, memory, seeds, sizes, tensor

chunks = st.sampled_from((1, 7, 40, 1 << 20))
shapes = st.tuples(*[sizes] * 9)  # g, i, o, K, b, T, K2, b2, T2
places = st.tuples(*[memory] * 4)
FORCED = {
    "product": {"T": 1, "T2": 1},
    "pairwise": {},
    "rows": {},
    "shared": {"b": 1, "b2": 1},
    None: {},
}


@pytest.mark.parametrize("name", FORCED, ids=str)
@given(shapes, dtypes, places, seeds, chunks)
def test_outer(
    name: str | None, shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, ...], seed: int, chunk: int
) -> None:
    size = dict(zip(("g", "i", "o", "K", "b", "T", "K2", "b2", "T2"), shape, strict=True)) | FORCED[name]
    g, i, o, K, b, T, K2, b2, T2 = size.values()
    kinds = ((g, b, T, i), (K, g, b, T, o), (g, b2, T2, i), (K2, g, b2, T2, o))
    given_ = [tensor(kind, dtype, how[k], seed + k) for k, kind in enumerate(kinds)]
    into, limit = DTYPES[dtype]
    with chunks_of(chunk):
        got = cross.CROSS[name](*given_, into) if name else cross.cross_outer(*given_, into)
    assert got.dtype == into
    expected = reference.cross_outer(*given_)
    assert got.shape == expected.shape == (K * b, K2 * b2)
    assert error(got, expected, reference.cross_outer(*[t.abs() for t in given_])) < limit


def test_reference_by_hand() -> None:
    """J = 2 [1, 3] + [0, 1] = [2, 7] with itself, [1, 1] and [0, 2]."""
    x1, c1 = torch.tensor([[1.0, 3.0], [0.0, 1.0]]).view(1, 1, 2, 2), torch.tensor([2.0, 1.0]).view(1, 1, 1, 2, 1)
    x2, c2 = torch.tensor([[1.0, 1.0], [0.0, 2.0]]).view(1, 2, 1, 2), torch.ones(1, 1, 2, 1, 1)
    expected = torch.tensor([[9.0, 14.0]])
    assert torch.equal(reference.cross_outer(x1, c1, x2, c2), expected.double())
    assert torch.equal(cross.cross_outer(x1, c1, x2, c2, torch.float32), expected)


@given(st.tuples(*[sizes] * 6), dtypes, places, seeds)
def test_a_factor_with_itself(shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, ...], seed: int) -> None:
    """Is its Gram matrix."""
    g, K, b, T, i, o = shape
    x, c = tensor((g, b, T, i), dtype, how[0], seed), tensor((K, g, b, T, o), dtype, how[1], seed + 1)
    into, limit = DTYPES[dtype]
    sizes_ = reference.gram_outer(x.abs(), c.abs())
    assert error(cross.cross_outer(x, c, x, c, into), reference.gram_outer(x, c), sizes_) < limit


def counted(name: str, e: outer.Extent, e2: outer.Extent) -> int:
    """Multiply-adds of a route's products, as they run on tensors without data."""
    factors = [
        torch.empty(shape, device="meta")
        for f in (e, e2)
        for shape in ((f.g, f.b, f.T, f.i), (f.K, f.g, f.b, f.T, f.o))
    ]
    with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter, chunks_of(1 << 60):
        patch.setattr(cross, "add_product", countable)
        cross.CROSS[name](*factors, torch.float32)
    return counter.get_total_flops() // 2


@given(st.tuples(*[st.integers(1, 600)] * 8))
def test_estimates_are_as_counted(shape: tuple[int, ...]) -> None:
    """Where nothing else costs, seconds are multiply-adds, and the fewest are chosen."""
    i, o, K, b, T, K2, b2, T2 = shape
    e, e2 = outer.Extent(1, K, b, T, i, o), outer.Extent(1, K2, b2, T2, i, o)
    counts = {name: counted(name, e, e2) for name in cross.options(e, e2)}
    with chunks_of(1 << 60):
        for name, count in counts.items():
            assert cross.estimate(name, e, e2, IDEAL).seconds == pytest.approx(count)
        assert counts[cross.route(e, e2, IDEAL)] == min(counts.values())


def test_routes_by_cost() -> None:
    """Few positions of wide layers are paired; many, or short rows, are not."""
    one, short, long = (outer.Extent(1, 1, 32, T, 256, 256) for T in (1, 4, 256))
    assert cross.route(one, one, CPU) == "product"
    assert cross.route(one, short, CPU) == "pairwise"
    assert cross.route(long, long, CPU) == "rows"
    tasks = outer.Extent(1, 8, 1, 16, 512, 512)
    assert cross.route(tasks, tasks._replace(T=32), CPU) == "shared"
    assert cross.route(tasks._replace(T=4096, i=16, o=16), tasks._replace(i=16, o=16), CPU) == "rows"


@given(st.tuples(*[sizes] * 7), st.sampled_from([1, 3, 12]), st.integers(0, 12), dtypes, places, seeds, chunks)
def test_gathered(
    shape: tuple[int, ...], V: int, apart: int, dtype: torch.dtype, how: tuple[str, ...], seed: int, chunk: int
) -> None:
    """Ids of the second factor lie `apart` higher: all, some or none are in common."""
    K, b, T, K2, b2, T2, d = shape
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (b, T), generator=generator), apart + torch.randint(V, (b2, T2), generator=generator)
    c = tensor((K, b, T, d), dtype, how[0], seed), tensor((K2, b2, T2, d), dtype, how[1], seed + 1)
    into, limit = DTYPES[dtype]
    with chunks_of(chunk):
        got = cross.cross_gathered(ids[0], c[0], ids[1], c[1], into)
    assert got.dtype == into
    J, J2 = (reference.gathered_rows(*pair, V + apart) for pair in zip(ids, c, strict=True))
    A, B = (reference.gathered_rows(i, v.abs(), V + apart) for i, v in zip(ids, c, strict=True))
    assert error(got, J @ J2.T, A @ B.T) < limit
