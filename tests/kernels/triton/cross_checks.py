"""What the kernel for rectangles of inner products must do, by Triton's interpreter and on a GPU, as in `checks.py`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gramjd.kernels import cross as torch_form
from gramjd.kernels import dispatch, reference
from gramjd.kernels.triton import cross
from gramjd.kernels.triton.common import Config
from tests.kernels.strategies import MEMORY, error, memory, seeds
from tests.kernels.triton.checks import DEVICE, DTYPES, dtypes, few, guarded, make, sizes

TINY = {"BLOCK_R": 16, "BLOCK_R2": 16, "BLOCK_D": 32}
FLOAT = (torch.float32,) * 4


def operands(
    shape: tuple[int, ...], kinds: tuple[torch.dtype, ...], how: tuple[str, ...], seed: int = 0
) -> list[Tensor]:
    g, i, o, K, b, K2, b2 = shape
    wanted = ((g, b, 1, i), (K, g, b, 1, o), (g, b2, 1, i), (K2, g, b2, 1, o))
    return [make(size, kinds[k], how[k], seed + k) for k, size in enumerate(wanted)]


def check(factors: list[Tensor], config: Config | None = None) -> None:
    """Right, the same when run again, and written nowhere else."""
    with guarded():
        got = cross.product(*factors, torch.float32, config)
    assert got.dtype == torch.float32
    assert torch.equal(got, cross.product(*factors, torch.float32, config))
    expected = reference.cross_outer(*[t.cpu() for t in factors])
    scale = reference.cross_outer(*[t.abs().cpu() for t in factors])
    assert error(got.cpu(), expected, scale) < 2e-6


@given(
    st.tuples(st.integers(1, 2), sizes, sizes, st.integers(1, 2), sizes, st.integers(1, 2), sizes),
    dtypes,
    st.tuples(*[memory] * 4),
    seeds,
)
@few
def test_cross_product(shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, ...], seed: int) -> None:
    check(operands(shape, (dtype,) * 4, how, seed), Config(TINY, 4, 2, splits=1 + seed % 3))


# More rows on either side and more numbers than one tile holds, in whole blocks and not.
LARGE = {
    "wide": (2, 35, 67, 1, 5, 3, 13),
    "tall": (1, 64, 96, 2, 19, 1, 3),
    "both": (1, 33, 65, 1, 37, 2, 20),
}


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_cross_larger_than_a_tile(shape: tuple[int, ...], splits: int) -> None:
    check(operands(shape, FLOAT, ("offset", "sliced", "transposed", "offset")), Config(TINY, 4, 2, splits))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", MEMORY)
def test_cross_layouts(how: str, dtype: torch.dtype) -> None:
    """The factors need not lie in memory alike."""
    check(operands((2, 7, 5, 2, 3, 1, 11), (dtype,) * 4, (how, "contiguous", "transposed", how)))


@pytest.mark.parametrize("kinds", [(torch.bfloat16, torch.float32) * 2, (torch.float16,) * 2 + (torch.float32,) * 2])
def test_cross_types_differ(kinds: tuple[torch.dtype, ...]) -> None:
    """Between x and c of one factor, and between the factors."""
    check(operands((1, 7, 5, 2, 3, 1, 4), kinds, ("offset",) * 4))


@pytest.mark.parametrize("empty", range(7))
def test_cross_sizes_of_zero(empty: int) -> None:
    shape = tuple(0 if place == empty else 3 for place in range(7))
    got = cross.product(*operands(shape, FLOAT, ("contiguous",) * 4), torch.float32)
    assert torch.equal(got.cpu(), torch.zeros(shape[3] * shape[4], shape[5] * shape[6]))


def test_cross_not_finite_shows() -> None:
    """A NaN in one row reaches every entry of its row of the rectangle, and no other."""
    factors = operands((1, 7, 5, 1, 4, 1, 6), FLOAT, ("contiguous",) * 4)
    factors[1][0, 0, 2, 0, 3] = float("nan")
    got = cross.product(*factors, torch.float32).cpu()
    assert torch.equal(got.isnan(), (torch.arange(4) == 2)[:, None].expand(4, 6))


def test_cross_by_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch.TABLE, ("cross.product", DEVICE), dispatch.TABLE["cross.product", "cuda"])
    monkeypatch.setitem(torch_form.CROSS, "product", None)
    factors = operands((2, 7, 5, 2, 3, 1, 4), FLOAT, ("offset",) * 4)
    with dispatch.use_backend("triton"):
        got = torch_form.cross_outer(*factors, torch.float32)
    assert error(got.cpu(), reference.cross_outer(*[t.cpu() for t in factors])) < 2e-6
