"""Symmetric updates give the whole product, whatever the blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gramjd.kernels import symmetric
from tests.kernels.strategies import error, memory, seeds, tensor


@pytest.mark.parametrize("R", [1, 31, 63, 64, 65, 127, 130, 256, 300])
def test_gram_at_the_edges_of_blocks(R: int) -> None:
    J = torch.randn(R, 7)
    got = symmetric.mirrored(symmetric.gram(J))
    assert torch.equal(got, got.T)
    assert error(got, J.double() @ J.double().T) < 1e-6


def test_nothing_below_the_diagonal_counts() -> None:
    G = torch.tensor([[1.0, 2.0], [torch.nan, 3.0]])
    assert torch.equal(symmetric.mirrored(G), torch.tensor([[1.0, 2.0], [2.0, 3.0]]))


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 20), memory, seeds)
def test_updates_add_up(R: int, d: int, block: int, how: str, seed: int) -> None:
    J, H = tensor((R, d), torch.float64, how, seed), tensor((R, d), torch.float64, "contiguous", seed + 1)
    G = torch.zeros(R, R, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(symmetric, "block_size", lambda R: block)
        symmetric.add_gram(G, J)
        symmetric.add_gram(G, H)
        got = symmetric.mirrored(G)
    assert error(got, J @ J.T + H @ H.T) < 1e-14


@given(st.integers(1, 1000), st.integers(-3, 1000))
def test_even_parts(n: int, most: int) -> None:
    """No part is too long, none is empty, and no two differ by more than the rest of a division."""
    part = symmetric.even(n, most)
    count = -(-n // part)
    assert 1 <= part <= max(1, most)
    assert count == -(-n // max(1, min(n, most)))


@pytest.mark.parametrize("rows", [3, 40, 63, 64, 70, 164, 600])
def test_every_number_of_rows_is_cut_into_blocks(rows: int) -> None:
    J = torch.randn(rows, 9, dtype=torch.float64)
    G = torch.zeros(rows, rows, dtype=torch.float64)
    symmetric.add_gram(G, J)
    symmetric.add_gram(G, J)
    assert error(symmetric.mirrored(G), 2 * J @ J.T) < 1e-14
