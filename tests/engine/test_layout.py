"""The algebra of layouts, against rows written out: every operation commutes with writing them out."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gramjd.engine.cotangent import Cotangent
from gramjd.engine.gaps import overlay
from gramjd.engine.layout import (
    Layout,
    Piece,
    along,
    canonical,
    carry,
    dense,
    diagonal_dims,
    gather,
    rejoin,
    scatter,
    split,
)
from tests.engine.layouts import SHAPES, M, dense_rows, expand, groups, is_canonical, pieces_of, rows_of, values_of

seeds = st.integers(0, 2**20)


def test_the_model_by_hand() -> None:
    """Two samples of two numbers; the second stacked row owns the first sample only."""
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [0.0, 0.0]]], dtype=torch.float64)
    rows = np.array([[0, 1], [2, -1]])
    got = expand([Piece(2, True), Piece(2, False)], rows, values)
    assert got[:3].tolist() == [[[1, 2], [0, 0]], [[0, 0], [3, 4]], [[5, 6], [0, 0]]]
    assert not got[3:].any()


@given(st.data(), SHAPES, seeds)
def test_canonical_changes_nothing(data: st.DataObject, shape: tuple[int, ...], seed: int) -> None:
    pieces = data.draw(pieces_of(shape))
    rows = data.draw(rows_of(pieces))
    values = values_of(pieces, rows, shape, seed)
    layout = canonical(pieces, rows)
    assert is_canonical(layout)
    assert torch.equal(dense_rows(Cotangent.of(layout, values)), expand(pieces, rows, values))


@given(groups())
def test_canonical_twice_is_canonical_once(group: Cotangent) -> None:
    again = canonical(group.layout.pieces, group.layout.owners)
    assert again.key == group.layout.key


@given(groups())
def test_what_a_layout_says_of_itself(group: Cotangent) -> None:
    layout = group.layout
    owned = {int(i) for i in layout.owners.reshape(-1) if i >= 0}
    assert layout.losses == len(owned)
    assert layout.stacked == len(group.values)
    assert layout.diagonal == any(p.diagonal for p in layout.pieces)


def nests(layout: Layout, shape: tuple[int, ...]) -> bool:
    """Whether every border of a piece and every border of a dimension divide one another, by the definition."""
    ends = [math.prod(shape[d:]) for d in range(len(shape) + 1)]
    sizes = [p.size for p in layout.pieces]
    ends += [math.prod(sizes[n:]) for n in range(len(sizes) + 1)]
    return all(a % b == 0 for a, b in pairwise(sorted(set(ends), reverse=True)))


@given(groups(), st.data())
def test_split_at_any_shape(group: Cotangent, data: st.DataObject) -> None:
    numel = math.prod(group.shape)
    shape = data.draw(st.permutations(list(group.shape)).map(tuple) | st.just((numel,)) | st.just((2, numel // 2)))
    assume(math.prod(shape) == numel)
    cut = split(group.layout, shape)
    assert (cut is not None) == nests(group.layout, shape)
    if cut is None:
        return
    pieces, rows = cut
    for d, n in enumerate(shape):
        assert math.prod(p.size for p in pieces if p.dim == d) == n
    assert [p.dim for p in pieces] == sorted(p.dim for p in pieces)
    assert torch.equal(expand(pieces, rows, group.values), dense_rows(group))


@given(groups(), st.data())
def test_a_reshape_needs_nothing(group: Cotangent, data: st.DataObject) -> None:
    numel = math.prod(group.shape)
    shape = data.draw(st.sampled_from([(numel,), (1, numel), (numel, 1), tuple(group.shape[::-1])]))
    moved = Cotangent.of(group.layout, group.values.reshape(len(group.values), *shape))
    assert torch.equal(dense_rows(moved), dense_rows(group).reshape(M, *shape))


@given(groups())
def test_diagonal_dims(group: Cotangent) -> None:
    found = diagonal_dims(group.layout, group.shape)
    assert found is not None
    apart = {p.dim for p in (split(group.layout, group.shape) or ([], 0))[0] if p.diagonal}
    assert found == (apart if group.layout.diagonal else set())


@given(groups(), st.data())
def test_carry_permutes(group: Cotangent, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(group.shape))))
    to_shape = [group.shape[d] for d in order]
    layout = carry(group.layout, group.shape, to_shape, {d: to for to, d in enumerate(order)})
    values = group.values.permute(0, *(1 + d for d in order))
    assert is_canonical(layout)
    assert torch.equal(dense_rows(Cotangent.of(layout, values)), dense_rows(group).permute(0, *(1 + d for d in order)))


@given(groups(), st.data())
def test_carry_replaces_what_is_mixed(group: Cotangent, data: st.DataObject) -> None:
    """A linear map of the other dimensions, here: sum over them, and expand to a new one in some place."""
    own = diagonal_dims(group.layout, group.shape)
    assert own is not None
    stay = [d for d in range(len(group.shape)) if d in own or data.draw(st.booleans())]
    place, size = data.draw(st.integers(0, len(stay))), data.draw(st.integers(1, 3))
    to_shape = [group.shape[d] for d in stay]
    to_shape.insert(place, size)
    to_dim = {d: n + (n >= place) for n, d in enumerate(stay)}

    def linear(t: torch.Tensor) -> torch.Tensor:
        gone = [1 + d for d in range(len(group.shape)) if d not in stay]
        return (t.sum(gone) if gone else t).unsqueeze(1 + place).expand(len(t), *to_shape)

    layout = carry(group.layout, group.shape, to_shape, to_dim)
    assert torch.equal(dense_rows(Cotangent.of(layout, linear(group.values))), linear(dense_rows(group)))


@st.composite
def with_dim(draw: st.DrawFn) -> tuple[Cotangent, int]:
    group = draw(groups(draw(SHAPES.filter(bool))))
    return group, draw(st.integers(0, len(group.shape) - 1))


@given(with_dim())
def test_along_makes_a_dimension_diagonal(case: tuple[Cotangent, int]) -> None:
    group, dim = case
    parts = along(group.layout, group.shape, dim)
    assert parts is not None
    before, after, rows = parts
    assert rows.shape[1 + sum(p.diagonal for p in before)] == group.shape[dim]
    middle = Piece(group.shape[dim], True)
    assert torch.equal(expand([*before, middle, *after], rows, group.values), dense_rows(group))


@given(with_dim())
def test_rejoin_undoes_along(case: tuple[Cotangent, int]) -> None:
    group, dim = case
    parts = along(group.layout, group.shape, dim)
    assert parts is not None
    layout = rejoin(*parts)
    assert layout is not None
    assert is_canonical(layout)
    assert torch.equal(dense_rows(Cotangent.of(layout, group.values)), dense_rows(group))
    assert len(layout.owners.reshape(-1)) <= len(parts[2].reshape(-1))


def test_rejoin_of_what_nobody_owns() -> None:
    assert rejoin([], [Piece(3, False)], np.array([[-1, -1]])) is None


def test_rejoin_coarsens_runs() -> None:
    """Owners 0 0 1 1 along a dimension of four are two slices of two."""
    layout = rejoin([], [Piece(3, False)], np.array([[0, 0, 1, 1]]))
    assert layout is not None
    assert layout.structure == ((2, True), (6, False))
    assert layout.owners.tolist() == [[0, 1]]


def test_rejoin_of_one_owner_has_no_batch_axis() -> None:
    layout = rejoin([], [Piece(3, False)], np.array([[2, 2, 2, 2]]))
    assert layout is not None
    assert layout.structure == ((12, False),)
    assert layout.owners.tolist() == [2]


@given(with_dim(), st.data())
def test_gather(case: tuple[Cotangent, int], data: st.DataObject) -> None:
    group, dim = case
    places = st.integers(0, group.shape[dim] - 1)
    index = np.array(data.draw(st.lists(places, min_size=1, max_size=6)))
    layout = gather(group.layout, group.shape, dim, index)
    expected = dense_rows(group).index_select(1 + dim, torch.from_numpy(index))
    if layout is None:
        assert not expected.any()
        return
    values = group.values.index_select(1 + dim, torch.from_numpy(index))
    assert is_canonical(layout)
    assert torch.equal(dense_rows(Cotangent.of(layout, values)), expected)


@given(with_dim(), st.data())
def test_scatter(case: tuple[Cotangent, int], data: st.DataObject) -> None:
    group, dim = case
    n = group.shape[dim]
    size = n + data.draw(st.integers(0, 3))
    index = np.array(data.draw(st.permutations(range(size)))[:n])

    def move(t: torch.Tensor) -> torch.Tensor:
        shape = list(t.shape)
        shape[1 + dim] = size
        return t.new_zeros(shape).index_copy(1 + dim, torch.from_numpy(index), t)

    layout = scatter(group.layout, group.shape, dim, index, size)
    expected = move(dense_rows(group))
    if layout is None:
        assert not expected.any()
        return
    assert is_canonical(layout)
    assert torch.equal(dense_rows(Cotangent.of(layout, move(group.values))), expected)


@given(with_dim(), st.data())
def test_gather_undoes_scatter(case: tuple[Cotangent, int], data: st.DataObject) -> None:
    group, dim = case
    n = group.shape[dim]
    index = np.array(data.draw(st.permutations(range(n + 2)))[:n])
    away = scatter(group.layout, group.shape, dim, index, n + 2)
    assume(away is not None)
    wide = list(group.shape)
    wide[dim] = n + 2
    assert away is not None
    back = gather(away, wide, dim, index)
    assert back is not None
    assert torch.equal(dense_rows(Cotangent.of(back, group.values)), dense_rows(group))


@given(st.data(), SHAPES, seeds, st.integers(1, 3))
def test_overlay(data: st.DataObject, shape: tuple[int, ...], seed: int, K: int) -> None:
    pieces = data.draw(pieces_of(shape))
    pair = [data.draw(rows_of(pieces, K)) for _ in range(2)]
    a, b = (Cotangent.of(canonical(pieces, r), values_of(pieces, r, shape, seed + n)) for n, r in enumerate(pair))
    both = overlay(a.layout, b.layout)
    clash = ((pair[0] >= 0) & (pair[1] >= 0) & (pair[0] != pair[1])).any()
    assert (both is None) == bool(clash)
    if both is not None:
        assert torch.equal(dense_rows(Cotangent.of(both, a.values + b.values)), dense_rows(a) + dense_rows(b))


def test_overlay_refuses_other_structures() -> None:
    a = canonical([Piece(2, True), Piece(3, False)], np.array([[0, 1]]))
    assert overlay(a, canonical([Piece(3, False), Piece(2, True)], np.array([[0, 1]]))) is None
    assert overlay(a, canonical([Piece(2, True), Piece(3, False)], np.array([[0, 1], [2, 3]]))) is None


@pytest.mark.parametrize("numel", [1, 6])
def test_dense(numel: int) -> None:
    layout = dense([3, 1, 3], numel)
    values = torch.arange(3.0 * numel, dtype=torch.float64).view(3, numel) + 1
    expected = torch.zeros(M, numel, dtype=torch.float64).index_add(0, torch.tensor([3, 1, 3]), values)
    assert torch.equal(dense_rows(Cotangent.of(layout, values)), expected)
    assert not layout.diagonal
