"""Rows that each sum over a segment of positions: the torch form is the definition, also in strips."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gramjd.kernels import outer, reference, segments
from gramjd.kernels.cost import chunks_of
from tests.kernels.strategies import DTYPES, dtypes, error, memory, seeds, tensor


@st.composite
def offsets(draw: st.DrawFn, most: int = 6) -> tuple[int, list[list[int]]]:
    """A number of positions, and offsets [g, n + 1] with up to `most` positions per segment and gaps between groups."""
    n, P, found = draw(st.integers(1, 6)), 0, []
    for _ in range(draw(st.integers(1, 3))):
        at = [P + draw(st.integers(0, 2))]
        for _ in range(n):
            at.append(at[-1] + draw(st.integers(0, most)))
        found.append(at)
        P = at[-1]
    return P + draw(st.integers(0, 2)), found


@given(
    offsets(),
    st.tuples(*[st.integers(1, 3)] * 3),
    dtypes,
    st.tuples(memory, memory),
    seeds,
    st.sampled_from((1, 7, 40, 1 << 20)),
)
def test_gram(
    at: tuple[int, list[list[int]]],
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    how: tuple[str, str],
    seed: int,
    chunk: int,
) -> None:
    P, starts = at[0], torch.tensor(at[1])
    K, i, o = sizes
    x, c = tensor((P, i), dtype, how[0], seed), tensor((K, P, o), dtype, how[1], seed + 1)
    into, limit = DTYPES[dtype]
    with chunks_of(chunk):
        got = segments.gram_segments(x, c, starts, into)
    assert got.dtype == into
    expected, scale = reference.gram_segments(x, c, starts), reference.gram_segments(x.abs(), c.abs(), starts)
    assert got.shape == expected.shape
    assert error(got.triu(), expected.triu(), scale) < limit


def test_reference_by_hand() -> None:
    """J = [1 2] of two positions in group 0, and [0 3] of none there and one in group 1."""
    x, c = torch.tensor([[1.0], [1.0], [3.0]]), torch.tensor([[[1.0], [1.0], [1.0]]])
    starts = torch.tensor([[0, 2, 2], [2, 2, 3]])
    assert torch.equal(reference.gram_segments(x, c, starts), torch.tensor([[4.0, 0.0], [0.0, 9.0]]).double())


@given(st.tuples(*[st.integers(1, 4)] * 5), seeds)
def test_segments_of_one_length_are_an_outer_factor(shape: tuple[int, ...], seed: int) -> None:
    K, b, T, i, o = shape
    x, c = tensor((b * T, i), torch.float64, "contiguous", seed), tensor((K, b * T, o), torch.float64, "sliced", seed)
    got = segments.gram_segments(x, c, T * torch.arange(b + 1)[None], torch.float64)
    expected = outer.gram_outer(x.view(1, b, T, i), c.reshape(K, 1, b, T, o), torch.float64)
    torch.testing.assert_close(got.triu(), expected.triu())


@pytest.mark.parametrize("empty", range(4))
def test_sizes_of_zero(empty: int) -> None:
    K, P, i, o = (0 if place == empty else 2 for place in range(4))
    starts = torch.tensor([[0, min(P, 1), P]])
    got = segments.gram_segments(torch.randn(P, i), torch.randn(K, P, o), starts, torch.float32)
    assert torch.equal(got, torch.zeros(2 * K, 2 * K))
