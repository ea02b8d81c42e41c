"""Cotangents that are spread, summed and added up, against rows written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gramjd.engine.cotangent import Cotangent, by_loss, densify, reduce_to
from gramjd.engine.layout import Piece, canonical, diagonal_dims
from gramjd.engine.unite import unite
from tests.engine.layouts import SHAPES, dense_rows, groups, is_canonical, rows_of


class Charges:
    """Adds up what an operation asks to allocate."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, nbytes: int) -> None:
        self.total += nbytes


@given(groups())
def test_densify_all(group: Cotangent) -> None:
    spread = densify(group, None)
    assert not spread.layout.diagonal
    assert torch.equal(dense_rows(spread), dense_rows(group))
    if group.layout.diagonal:
        assert spread.layout.stacked == group.layout.losses


@given(groups(), st.data())
def test_densify_some_dimensions(group: Cotangent, data: st.DataObject) -> None:
    dims = {d for d in range(len(group.shape)) if data.draw(st.booleans())}
    spread = densify(group, dims)
    assert is_canonical(spread.layout)
    assert spread.shape == group.shape
    left = diagonal_dims(spread.layout, spread.shape)
    assert left is not None
    assert not left & dims
    assert torch.equal(dense_rows(spread), dense_rows(group))


@given(groups(), st.data())
def test_densify_at_a_shape_that_does_not_nest(group: Cotangent, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.permutations(list(group.shape))))
    viewed = Cotangent.of(group.layout, group.values.reshape(-1, *shape))
    spread = densify(viewed, set(range(len(shape))))
    assert torch.equal(dense_rows(spread), dense_rows(viewed))
    assert not spread.layout.diagonal


@given(groups())
def test_densify_charges_what_it_allocates(group: Cotangent) -> None:
    charges = Charges()
    spread = densify(group, None, charges)
    fresh = spread.values.untyped_storage().data_ptr() != group.values.untyped_storage().data_ptr()
    assert charges.total == (spread.values.nbytes if fresh else 0)
    assert fresh or spread.layout.stacked == group.layout.stacked


@given(groups(), st.data())
def test_reduce_to(group: Cotangent, data: st.DataObject) -> None:
    """Down to an operand that was broadcast: leading dimensions missing, others of size 1."""
    lead = data.draw(st.integers(0, len(group.shape)))
    shape = tuple(1 if data.draw(st.booleans()) else n for n in group.shape[lead:])
    reduced = reduce_to(group, shape)
    assert tuple(reduced.shape) == shape
    assert is_canonical(reduced.layout)
    expected = dense_rows(group)
    expected = expected.sum(tuple(range(1, 1 + lead))) if lead else expected
    gone = [1 + d for d, n in enumerate(shape) if n != expected.shape[1 + d]]
    expected = expected.sum(gone, keepdim=True) if gone else expected
    assert torch.equal(dense_rows(reduced), expected)


@given(st.data(), SHAPES, st.integers(1, 4))
def test_unite(data: st.DataObject, shape: tuple[int, ...], count: int) -> None:
    parts = [data.draw(groups(shape)) for _ in range(count)]
    before = [part.values.clone() for part in parts]
    united = unite(parts)
    assert len(united) <= count
    assert torch.equal(sum(dense_rows(g) for g in united), sum(dense_rows(g) for g in parts))
    assert len({g.layout.structure for g in united}) == len(united)
    assert all(torch.equal(a, part.values) for a, part in zip(before, parts, strict=True))


@given(st.data(), SHAPES, st.integers(2, 4))
def test_unite_adds_what_has_the_same_owners(data: st.DataObject, shape: tuple[int, ...], count: int) -> None:
    first = data.draw(groups(shape))
    united = unite([Cotangent.of(first.layout, n * first.values) for n in range(1, count + 1)])
    assert len(united) == 1
    assert torch.equal(dense_rows(united[0]), math.comb(count + 1, 2) * dense_rows(first))
    assert united[0].layout.stacked <= first.layout.stacked


@given(st.data(), SHAPES, st.integers(1, 6), st.integers(0, 2**20))
def test_rows_by_loss(data: st.DataObject, shape: tuple[int, ...], R: int, seed: int) -> None:
    rows = data.draw(rows_of([], R))
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-4, 5, (R, *shape), generator=generator).double()
    layout, sums = by_loss(rows, math.prod(shape))
    group = Cotangent.of(layout, sums(values))
    owned = sorted({int(i) for i in rows if i >= 0})
    assert sorted(group.layout.owners.tolist()) == owned
    for i in owned:
        place = group.layout.owners.tolist().index(i)
        mine = [k for k in range(R) if rows[k] == i]
        assert torch.equal(group.values[place], values[mine].sum(0))


@pytest.mark.parametrize("stacked", [1, 3])
def test_one_sample_a_row_is_spread_to_a_diagonal(stacked: int) -> None:
    """The common case by hand: [K, b, d] to [K b, b, d], zero off the diagonal."""
    values = torch.arange(1.0, 1 + stacked * 4 * 2).view(stacked, 4, 2)
    layout = canonical([Piece(4, True), Piece(2, False)], np.arange(stacked * 4).reshape(stacked, 4))
    spread = densify(Cotangent.of(layout, values), {0})
    assert spread.layout.owners.tolist() == list(range(4 * stacked))
    for k in range(stacked):
        for n in range(4):
            expected = torch.zeros(4, 2)
            expected[n] = values[k, n]
            assert torch.equal(spread.values[4 * k + n], expected)
