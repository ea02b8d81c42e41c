"""What the kernel for segments of any length must do, by Triton's interpreter and on a GPU, as in `checks.py`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gramjd.kernels import dispatch, reference
from gramjd.kernels import segments as torch_form
from gramjd.kernels.triton import segments
from gramjd.kernels.triton.common import Config
from tests.kernels.strategies import MEMORY, error, memory, seeds
from tests.kernels.test_segments import offsets
from tests.kernels.triton.checks import DEVICE, DTYPES, check_gram, dtypes, few, make

TINY = {"ROWS": 16, "POSITIONS": 16, "BLOCK_D": 32}


def check(
    starts: list[list[int]],
    shape: tuple[int, ...],
    kinds: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32),
    how: tuple[str, str] = ("offset", "offset"),
    config: Config | None = None,
    seed: int = 0,
) -> None:
    P, K, i, o = shape
    x, c, at = make((P, i), kinds[0], how[0], seed), make((K, P, o), kinds[1], how[1], seed + 1), torch.tensor(starts)
    expected = reference.gram_segments(x.cpu(), c.cpu(), at)
    scale = reference.gram_segments(x.abs().cpu(), c.abs().cpu(), at)
    there = at.to(DEVICE)
    check_gram(lambda: segments.pairwise(x, c, there, torch.float32, config), expected, scale, 2e-6)


@given(st.data(), st.integers(1, 2), st.integers(1, 40), st.integers(1, 40), dtypes, st.tuples(memory, memory), seeds)
@few
def test_segments(
    data: st.DataObject, K: int, i: int, o: int, dtype: torch.dtype, how: tuple[str, str], seed: int
) -> None:
    """None, one or many positions per row, groups with positions left out between them."""
    P, starts = data.draw(offsets(most=7))
    check(starts, (P, K, i, o), (dtype, dtype), how, Config(TINY, 4, 2, splits=1 + seed % 3), seed)


# More rows than a square of them, segments longer than a block, and one that takes all.
LONG = {
    "many rows": ([list(range(0, 41))], (41, 1, 35, 7)),
    "long and short": ([[0, 1, 1, 40, 43, 60]], (60, 2, 33, 5)),
    "one takes all": ([[0, 0, 50, 50]], (50, 1, 32, 64)),
    "groups of few": ([[0, 1, 3, 3], [3, 3, 4, 4], [4, 9, 9, 10], [10, 10, 10, 10]], (12, 2, 5, 7)),
    "stacked, more than a square": ([[2 * n for n in range(20)]], (40, 3, 9, 5)),
}


@pytest.mark.parametrize("splits", [1, 5])
@pytest.mark.parametrize("name", LONG)
def test_segments_larger_than_a_tile(name: str, splits: int) -> None:
    starts, shape = LONG[name]
    check(starts, shape, config=Config(TINY, 4, 2, splits))


@pytest.mark.parametrize("name", LONG)
def test_segments_as_configured(name: str) -> None:
    check(*LONG[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", MEMORY)
def test_segments_in_any_layout(how: str, dtype: torch.dtype) -> None:
    check(*LONG["groups of few"], (dtype, dtype), (how, "transposed"))
    check(*LONG["groups of few"], (dtype, dtype), ("offset", how))


@pytest.mark.parametrize("kinds", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_segments_of_two_types(kinds: tuple[torch.dtype, torch.dtype]) -> None:
    check(*LONG["groups of few"], kinds)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_offsets_of_two_types(kind: torch.dtype) -> None:
    x, c, at = torch.randn(5, 3), torch.randn(1, 5, 4), torch.tensor([[0, 2, 5], [5, 5, 5]], dtype=kind)
    got = segments.pairwise(x.to(DEVICE), c.to(DEVICE), at.T.contiguous().T.to(DEVICE), torch.float32)
    assert error(got.cpu(), reference.gram_segments(x, c, at)) < 2e-6


@pytest.mark.parametrize("empty", ["K", "P", "g", "n", "i", "o"])
def test_segments_of_sizes_of_zero(empty: str) -> None:
    K, P, g, n, i, o = (0 if name == empty else 3 for name in ("K", "P", "g", "n", "i", "o"))
    starts = torch.arange(n + 1).clamp(max=P).expand(g, n + 1).to(DEVICE)
    x, c = torch.randn(P, i, device=DEVICE), torch.randn(K, P, o, device=DEVICE)
    got = segments.pairwise(x, c, starts, torch.float32)
    assert torch.equal(got.cpu(), torch.zeros(K * n, K * n))


# NumPy, by which the interpreter multiplies, remarks on an infinity times the zeros beside it.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_segments_not_finite_show(value: float) -> None:
    """A NaN or an infinity reaches every entry of its row, and no other row, also of those that share its tile."""
    x, c = torch.randn(12, 7), torch.randn(1, 12, 3)
    c[0, 4, 1] = value
    at = torch.tensor([[0, 3, 4, 7, 9, 12]])
    G = segments.pairwise(x.to(DEVICE), c.to(DEVICE), at.to(DEVICE), torch.float32).cpu()
    bad = torch.arange(5) == 2
    assert torch.equal(~G.isfinite(), bad[:, None] | bad[None, :])


def test_positions_that_no_segment_covers_are_not_read() -> None:
    x, c = torch.randn(30, 7), torch.randn(1, 30, 3)
    x[:3] = x[10:20] = x[25:] = float("nan")
    at = torch.tensor([[3, 5, 10], [20, 25, 25]])
    assert segments.pairwise(x.to(DEVICE), c.to(DEVICE), at.to(DEVICE), torch.float32).isfinite().all()


def test_segments_by_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    operation = "segments.pairwise"
    monkeypatch.setitem(dispatch.TABLE, (operation, DEVICE), dispatch.TABLE[operation, "cuda"])
    monkeypatch.setattr(torch_form, "_pairwise", None)
    starts, (P, K, i, o) = LONG["groups of few"]
    x, c, at = torch.randn(P, i), torch.randn(K, P, o), torch.tensor(starts)
    with dispatch.use_backend("triton"):
        got: Tensor = torch_form.gram_segments(x.to(DEVICE), c.to(DEVICE), at.to(DEVICE), torch.float32)
    assert error(got.cpu(), reference.gram_segments(x, c, at)) < 2e-6
