"""Slices that nobody owns: they are zero, so whatever is done with their owners changes no row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gramjd
from gramjd.engine import gaps
from gramjd.engine.cotangent import Cotangent, densify
from gramjd.engine.gaps import compatible, distinct, filled, overlay
from gramjd.engine.layout import Layout, Owners, Piece, canonical
from tests.engine.layouts import SHAPES, dense_rows, expand, groups, is_canonical, pieces_of, rows_of, values_of
from tests.oracle import oracle_gramian

seeds = st.integers(0, 2**20)
B, T = 3, 4


def tokens(owners: list[int], d: int = 2) -> Layout:
    return canonical([Piece(len(owners), True), Piece(d, False)], np.array([owners]))


def samples() -> Layout:
    """As it is where no index was: [B, T, 2]."""
    return canonical([Piece(B, True), Piece(T * 2, False)], np.arange(B)[None])


def everyone(pieces: tuple[Piece, ...], owners: Owners) -> Owners:
    """[K, elements]: the owner of each."""
    shape = [len(owners), *(p.size if p.diagonal else 1 for p in pieces)]
    whole = (len(owners), *(p.size for p in pieces))
    return np.broadcast_to(owners.reshape(shape), whole).reshape(len(owners), -1)


@given(st.data(), SHAPES, seeds, st.integers(1, 3))
def test_overlay_of_any_two_layouts(data: st.DataObject, shape: tuple[int, ...], seed: int, K: int) -> None:
    """Pieces of both may differ; where the sum has a layout, it says what both said."""
    given_ = []
    for n in range(2):
        pieces = data.draw(pieces_of(shape))
        rows = data.draw(rows_of(pieces, K))
        given_.append(Cotangent.of(canonical(pieces, rows), values_of(pieces, rows, shape, seed + n)))
    a, b = given_
    both = overlay(a.layout, b.layout)
    mine, theirs = (everyone(c.layout.pieces, c.layout.owners) for c in given_)
    clash = bool(((mine >= 0) & (theirs >= 0) & (mine != theirs)).any())
    if both is None:
        nested = gaps._refined(a.layout, b.layout) is not None
        assert clash or not nested
    else:
        assert not clash
        assert is_canonical(both)
        assert torch.equal(dense_rows(Cotangent.of(both, a.values + b.values)), dense_rows(a) + dense_rows(b))


@given(groups())
def test_filling_changes_no_row(group: Cotangent) -> None:
    layout = filled(group.layout, group.shape)
    assert is_canonical(layout)
    assert torch.equal(dense_rows(Cotangent.of(layout, group.values)), dense_rows(group))
    assert layout.owners.size <= group.layout.owners.size
    assert (layout is group.layout) or group.layout.gaps


def test_tokens_of_experts_are_samples_again() -> None:
    """Two routes that share the tokens, met by a residual: as if there had been no routes."""
    residual = samples()
    first = tokens([n // T if n % 3 else -1 for n in range(B * T)])
    second = tokens([-1 if n % 3 else n // T for n in range(B * T)])
    assert first.structure == second.structure == ((B * T, True), (2, False))
    assert overlay(first, second) is residual
    assert overlay(residual, first) is residual
    assert overlay(first, residual) is residual


def test_tokens_in_the_order_of_time_are_samples_again() -> None:
    residual = canonical([Piece(T, False), Piece(B, True), Piece(2, False)], np.arange(B)[None])
    owners = [n % B for n in range(B * T)]
    first = tokens([i if n % 4 else -1 for n, i in enumerate(owners)])
    assert overlay(residual, first) is residual
    second = tokens([-1 if n % 4 else i for n, i in enumerate(owners)])
    merged = overlay(first, second)
    assert merged is not None
    assert not merged.gaps


def test_few_tokens_stay_apart_and_many_do_not() -> None:
    few, most = ([n // T if n in kept else -1 for n in range(B * T)] for kept in ((0, 5, 6, 11), range(1, B * T)))
    assert filled(tokens(few), (B * T, 2)) is tokens(few)
    assert filled(tokens(most), (B * T, 2)) is samples()


def test_tokens_by_time_are_filled_where_the_shape_tells() -> None:
    most = tokens([n % B if n else -1 for n in range(B * T)])
    assert filled(most, (B * T, 2)) is most
    assert filled(most, (T, B, 2)).structure == ((T, False), (B, True), (2, False))


def test_slices_that_stay_in_their_row_are_not_copied() -> None:
    """As in front of attention: positions mix, of which some belong to nobody."""
    layout = canonical(
        [Piece(B, True), Piece(T, True), Piece(2, False)], np.array([[n // T if n % 3 else -1 for n in range(B * T)]])
    )
    values = torch.arange(1.0, 1 + B * T * 2).view(1, B, T, 2) * torch.from_numpy(layout.owners >= 0).view(1, B, T, 1)
    group = Cotangent.of(layout, values)
    spread = densify(group, {1})
    assert spread.layout is samples()
    assert spread.values is values


def test_one_owner_keeps_its_gaps() -> None:
    """As a sample in a loop over the batch: it may yet meet the others."""
    alone = tokens([1, 1, 1, -1])
    assert filled(alone, (4, 2)) is alone


@given(st.data(), SHAPES.filter(bool))
def test_compatible_rows(data: st.DataObject, shape: tuple[int, ...]) -> None:
    """Each row's owners are those of the row it is put to, wherever it owns anything; fewer rows than distinct ones."""
    rows = data.draw(rows_of([Piece(n, True) for n in shape], data.draw(st.integers(1, 6))))
    place, kept = compatible(rows)
    for row, at in zip(rows, place, strict=True):
        if at < 0:
            assert (row < 0).all()
        else:
            assert ((row < 0) | (row == kept[at])).all()
    _, exact = distinct(rows)
    assert len(kept) <= len(exact)
    for owned in kept:
        assert set(owned[owned >= 0]) <= set(rows[rows >= 0])


def test_compatible_by_hand() -> None:
    rows = np.array([[0, -1, 2], [-1, 1, 2], [-1, -1, -1], [3, -1, -1], [0, 1, -1]])
    place, kept = compatible(rows)
    assert place.tolist() == [0, 0, -1, 1, 0]
    assert kept.tolist() == [[0, 1, 2], [3, -1, -1]]


@pytest.mark.parametrize("owners", [[[0, 1], [0, 1]], [[2, -1], [-1, 2]]])
def test_distinct_by_hand(owners: list[list[int]]) -> None:
    place, kept = distinct(np.array(owners))
    assert kept[place].tolist() == owners
    assert len(kept) == len({tuple(row) for row in owners})


def test_too_many_rows_to_compare_are_put_together_where_they_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaps, "MANY", 2)
    place, kept = compatible(np.array([[0, -1], [-1, 1], [0, -1], [2, 1]]))
    assert place.tolist() == [0, 1, 0, 2]
    assert kept.tolist() == [[0, -1], [-1, 1], [2, 1]]


@given(st.data(), SHAPES, seeds)
def test_layouts_over_one_tensor_add_up_in_any_order(data: st.DataObject, shape: tuple[int, ...], seed: int) -> None:
    """Parts of one layout, each with gaps where the others have something."""
    pieces = data.draw(pieces_of(shape))
    rows = data.draw(rows_of(pieces, 1))
    part = np.random.default_rng(seed).integers(0, 3, rows.shape)
    layouts = [canonical(pieces, np.where(part == n, rows, -1)) for n in range(3)]
    values = values_of(pieces, rows, shape, seed)
    for order in ((0, 1, 2), (2, 0, 1)):
        a, b, c = (layouts[n] for n in order)
        both = overlay(a, b)
        assert both is not None
        whole = overlay(both, c)
        assert whole is not None
        assert math.prod(p.size for p in whole.pieces) == math.prod(shape)
        assert torch.equal(dense_rows(Cotangent.of(whole, values)), expand(pieces, rows, values))


def test_losses_of_single_tokens_keep_the_batch_axis() -> None:
    """A loss per sequence, token by token in a loop: what is not asked for is zero, and belongs to no other axis."""
    B, T, d, V = 3, 5, 8, 7
    query, head, h = torch.nn.Linear(d, d).double(), torch.nn.Linear(d, V).double(), torch.randn(B, T, d).double()
    q = query(h).view(B, T, 2, 4).transpose(1, 2)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    logits = head(mixed.transpose(1, 2).reshape(B, T, d))
    asked = [[0], [1, 2, 4], [0, 1, 2, 3, 4]]
    losses = torch.stack(
        [torch.stack([row.log_softmax(-1)[t, t] for t in some]).mean() for row, some in zip(logits, asked, strict=True)]
    )
    inputs = [*query.parameters(), *head.parameters()]
    torch.testing.assert_close(gramjd.gramian(losses, inputs), oracle_gramian(losses, inputs))  # no DenseRowsWarning


def test_a_reduction_behind_a_reshape_that_cuts_across_the_losses() -> None:
    """No dimension of the reduced tensor is a batch axis: the rows are dense there, and exact."""
    weight, x = torch.randn(3, 5).double().requires_grad_(), torch.randn(5, 4, 3).double()
    losses = (x @ weight).amax(2).reshape(4, 5).sum(0)[1:]
    with pytest.warns(gramjd.errors.DenseRowsWarning):
        found = gramjd.gramian(losses)
    torch.testing.assert_close(found, oracle_gramian(losses, [weight]))
