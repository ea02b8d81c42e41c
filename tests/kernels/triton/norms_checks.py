"""What the kernel for squared lengths of rows must do, by Triton's interpreter and on a GPU, as in `checks.py`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gramjd.kernels import dispatch, reference
from gramjd.kernels import norms as torch_form
from gramjd.kernels.triton import norms
from gramjd.kernels.triton.common import Config
from tests.kernels.strategies import MEMORY, error, memory, seeds
from tests.kernels.triton.checks import DEVICE, DTYPES, dtypes, few, guarded, make, sizes

TINY = {"POSITIONS": 16, "BLOCK_D": 32}


def operands(
    shape: tuple[int, ...], kinds: tuple[torch.dtype, ...], how: tuple[str, ...], seed: int = 0
) -> tuple[Tensor, Tensor]:
    K, b, T, i, o = shape
    return make((b, T, i), kinds[0], how[0], seed), make((K, b, T, o), kinds[1], how[1], seed + 1)


def check(x: Tensor, c: Tensor, config: Config | None = None) -> None:
    """Right, the same when run again, and written nowhere else."""
    with guarded():
        got = norms.pair(x, c, torch.float32, config)
    assert got.dtype == torch.float32
    assert got.shape == c.shape[:2]
    assert torch.equal(got, norms.pair(x, c, torch.float32, config))
    x, c = x.cpu()[None], c.cpu()[:, None]
    expected, scale = (reference.norms_outer(*pair) for pair in ((x, c), (x.abs(), c.abs())))
    assert error(got.cpu().flatten(), expected, scale) < 2e-6


@given(st.tuples(st.integers(1, 2), sizes, sizes, sizes, sizes), dtypes, st.tuples(memory, memory), seeds)
@few
def test_lengths(shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, ...], seed: int) -> None:
    check(*operands(shape, (dtype, dtype), how, seed), Config(TINY, 4, 2, splits=1 + seed % 3))


# More positions and more numbers than one tile holds, in whole blocks and not.
LARGE = {"long": (1, 2, 50, 35, 67), "whole": (2, 3, 32, 64, 96), "stacked": (3, 5, 17, 33, 5)}


@pytest.mark.parametrize("splits", [1, 3, 20])
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_lengths_of_more_than_a_tile(shape: tuple[int, ...], splits: int) -> None:
    check(*operands(shape, (torch.float32,) * 2, ("offset", "transposed")), Config(TINY, 4, 2, splits))


@pytest.mark.parametrize("T", [1, 20, 70])
def test_lengths_as_configured(T: int) -> None:
    check(*operands((1, 2, T, 5, 7), (torch.float32,) * 2, ("contiguous", "sliced")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", MEMORY)
def test_lengths_in_any_layout(how: str, dtype: torch.dtype) -> None:
    check(*operands((2, 3, 5, 7, 4), (dtype, dtype), (how, "contiguous")))
    check(*operands((2, 3, 5, 7, 4), (dtype, dtype), ("transposed", how)))


@pytest.mark.parametrize("kinds", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_lengths_of_two_types(kinds: tuple[torch.dtype, ...]) -> None:
    check(*operands((2, 3, 5, 7, 4), kinds, ("offset", "offset")))


@pytest.mark.parametrize("empty", range(5))
def test_lengths_of_sizes_of_zero(empty: int) -> None:
    shape = tuple(0 if place == empty else 3 for place in range(5))
    got = norms.pair(*operands(shape, (torch.float32,) * 2, ("contiguous",) * 2), torch.float32)
    assert torch.equal(got.cpu(), torch.zeros(shape[:2]))


def test_lengths_not_finite_show() -> None:
    """A NaN reaches its row, and no other."""
    x, c = operands((1, 4, 5, 7, 3), (torch.float32,) * 2, ("contiguous",) * 2)
    c[0, 2, 0, 1] = float("nan")
    got = norms.pair(x, c, torch.float32).cpu()
    assert torch.equal(got.isnan()[0], torch.arange(4) == 2)


def test_lengths_by_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch.TABLE, ("norms.pair", DEVICE), dispatch.TABLE["norms.pair", "cuda"])
    monkeypatch.setitem(torch_form.OUTER, "pair", None)
    monkeypatch.setattr(torch_form, "outer_route", lambda e, known: "pair")
    x, c = make((2, 3, 5, 7), torch.float32, "offset", 0), make((2, 2, 3, 5, 4), torch.float32, "offset", 1)
    with dispatch.use_backend("triton"):
        got = torch_form.norms_outer(x, c, torch.float32)
    assert error(got.cpu(), reference.norms_outer(x.cpu(), c.cpu())) < 2e-6
