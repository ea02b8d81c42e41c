"""Gram matrices of given rows."""

from __future__ import annotations

import torch
from hypothesis import given

from gramjd.kernels import reference
from gramjd.kernels.rows import gram_own_slices, gram_rows
from gramjd.kernels.symmetric import mirrored
from tests.kernels.strategies import DTYPES, dtypes, error, memory, seeds, sizes, tensor


@given(sizes, sizes, dtypes, memory, seeds)
def test_gram_rows(R: int, d: int, dtype: torch.dtype, how: str, seed: int) -> None:
    J = tensor((R, d), dtype, how, seed)
    into, limit = DTYPES[dtype]
    got = mirrored(gram_rows(J, into))
    assert got.dtype == into
    assert error(got, reference.gram_rows(J), reference.gram_rows(J.abs())) < limit


@given(sizes, sizes, sizes, dtypes, memory, seeds)
def test_gram_own_slices(b: int, K: int, d: int, dtype: torch.dtype, how: str, seed: int) -> None:
    J = tensor((b, K, d), dtype, how, seed)
    into, limit = DTYPES[dtype]
    got = gram_own_slices(J, into)
    assert got.dtype == into
    expected, without_signs = (torch.stack([reference.gram_rows(rows) for rows in values]) for values in (J, J.abs()))
    assert error(got, expected, without_signs) < limit


def test_by_hand() -> None:
    J = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert torch.equal(gram_rows(J, torch.float32), torch.tensor([[5.0, 1.0], [1.0, 10.0]]))
    assert torch.equal(gram_own_slices(J[:, None], torch.float32), torch.tensor([[[5.0]], [[10.0]]]))


def test_no_numbers() -> None:
    """Rows of an empty parameter are orthogonal."""
    assert torch.equal(gram_rows(torch.zeros(3, 0), torch.float32), torch.zeros(3, 3))
