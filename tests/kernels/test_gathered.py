"""Embedding rows: comparing ids and adding up per id give the definition, and so does the pair with a tied head."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.flop_counter import FlopCounterMode

from gramjd.kernels import gathered, reference, symmetric, use_backend
from gramjd.kernels.cost import chunks_of
from gramjd.kernels.symmetric import mirrored
from tests.kernels.strategies import CPU, DTYPES, IDEAL, countable, dtypes, error, memory, seeds, sizes, tensor

CHUNKS = (1, 9, 50, 1 << 20)
chunks = st.sampled_from(CHUNKS)
vocabularies = st.sampled_from([1, 2, 5, 40])


def ids_of(b: int, T: int, V: int, seed: int) -> Tensor:
    return torch.randint(V, (b, T), generator=torch.Generator().manual_seed(seed))


def pairwise(ids: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    return gathered._pairwise(ids, c, dtype)


def unique(ids: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    used, place = torch.unique(ids, return_inverse=True)
    return gathered._unique(place, len(used), c, dtype)


ROUTES: dict[str, Callable[[Tensor, Tensor, torch.dtype], Tensor]] = {
    "pairwise": pairwise,
    "unique": unique,
    "cheaper": gathered.gram_gathered,
}


@pytest.mark.parametrize("name", ROUTES)
@given(st.tuples(sizes, sizes, sizes, sizes), vocabularies, dtypes, memory, seeds, chunks)
def test_gram(name: str, shape: tuple[int, ...], V: int, dtype: torch.dtype, how: str, seed: int, chunk: int) -> None:
    K, b, T, d = shape
    ids, c = ids_of(b, T, V, seed), tensor((K, b, T, d), dtype, how, seed)
    into, limit = DTYPES[dtype]
    with chunks_of(chunk):
        got = mirrored(ROUTES[name](ids, c, into))
    assert got.dtype == into
    expected, without_signs = (reference.gram_gathered(ids, values, V) for values in (c, c.abs()))
    assert error(got, expected, without_signs) < limit


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", ROUTES)
def test_one_id_everywhere(name: str, chunk: int) -> None:
    """All positions fall into one row: G is the Gram matrix of the sums."""
    c = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    sums = c.sum(2).reshape(6, 4)
    with chunks_of(chunk):
        got = mirrored(ROUTES[name](torch.full((3, 7), 11), c, torch.float64))
    assert error(got, sums @ sums.T) < 1e-13


@pytest.mark.parametrize("name", ROUTES)
def test_no_id_in_common(name: str) -> None:
    """Samples that share no id are orthogonal, exactly."""
    c = torch.randn(1, 3, 4, 5)
    G = mirrored(ROUTES[name](torch.arange(12).view(3, 4), c, torch.float32))
    assert torch.equal(G, torch.diag(G.diagonal()))
    assert error(G.diagonal(), c.double().square().sum((0, 2, 3))) < 1e-6


def test_routes_by_cost() -> None:
    """Short sequences over many ids are compared; long ones over few are added up."""
    assert gathered.route(4, 2, 8, 512, CPU) == "pairwise"
    assert gathered.route(64, 512, 100, 64, CPU) == "unique"


@given(st.tuples(*[st.integers(1, n) for n in (64, 40, 600, 600)]))
def test_estimates_are_as_counted(shape: tuple[int, ...]) -> None:
    """Where nothing else costs, seconds are multiply-adds, and the fewest are chosen."""
    R, T, U, d = shape
    c = torch.empty(1, R, T, d, device="meta")
    runs = {
        "pairwise": lambda: gathered._pairwise(torch.empty(R, T, device="meta"), c, torch.float32),
        "unique": lambda: gathered._unique(torch.empty(R, T, dtype=torch.long, device="meta"), U, c, torch.float32),
    }
    counts = {}
    with pytest.MonkeyPatch.context() as patch, chunks_of(1 << 40), use_backend("torch"):
        patch.setattr(symmetric, "add_product", countable)
        for name, run in runs.items():
            with FlopCounterMode(display=False) as counter:
                run()
            counts[name] = counter.get_total_flops() // 2
            assert gathered.estimate(name, *shape, IDEAL).seconds == pytest.approx(counts[name], rel=0.1)
        assert counts[gathered.route(*shape, IDEAL)] <= 1.1 * min(counts.values())


@given(sizes, sizes, sizes, sizes, st.data(), seeds, memory)
def test_gathered_rows_of_a_part(K: int, b: int, T: int, d: int, data: st.DataObject, seed: int, how: str) -> None:
    V = 6
    lo = data.draw(st.integers(0, V - 1))
    hi = data.draw(st.integers(lo + 1, V))
    ids, c = ids_of(b, T, V, seed), tensor((K, b, T, d), torch.float64, how, seed)
    expected = torch.zeros(K, b, V, d, dtype=torch.float64)
    for k, n, t in product(range(K), range(b), range(T)):
        expected[k, n, ids[n, t]] += c[k, n, t]
    got = gathered.gathered_rows(ids, c, lo, hi, torch.float64)
    assert error(got, expected.reshape(K * b, V, d)[:, lo:hi]) < 1e-14


@given(st.tuples(*[sizes] * 7), dtypes, memory, seeds, chunks)
def test_cross_of_a_tied_head(shape: tuple[int, ...], dtype: torch.dtype, how: str, seed: int, chunk: int) -> None:
    K, b, T, b2, T2, K2, i = shape
    V = 7
    x, c = tensor((b, T, i), dtype, how, seed), tensor((K, b, T, V), dtype, how, seed + 1)
    ids2, c2 = ids_of(b2, T2, V, seed), tensor((K2, b2, T2, i), dtype, how, seed + 2)
    expected, without_signs = (
        torch.einsum("bti,kbtv,lnsi,nsv->kbln", x, c, c2, one_hot(ids2, V).double()).reshape(K * b, K2 * b2)
        for x, c, c2 in ((x.double(), c.double(), c2.double()), (x.double().abs(), c.double().abs(), c2.double().abs()))
    )
    into, limit = DTYPES[dtype]
    with chunks_of(chunk):
        got = gathered.cross_outer_gathered(x, c, ids2, c2, into)
    assert got.shape == (K * b, K2 * b2)
    assert error(got, expected, without_signs) < limit
