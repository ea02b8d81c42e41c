"""What the kernels for rectangles of rows with positions must do, by Triton's interpreter and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gramjd.kernels import cross as torch_form
from gramjd.kernels import dispatch, reference
from gramjd.kernels.triton import cross_chunks, cross_pairs
from gramjd.kernels.triton.common import Config
from tests.kernels.strategies import MEMORY, error, memory, seeds
from tests.kernels.triton.checks import DEVICE, DTYPES, dtypes, few, guarded, make, sizes

FLOAT = (torch.float32,) * 4
PAIRS = {"ROWS": 8, "POSITIONS": 4, "ROWS2": 4, "POSITIONS2": 8, "BLOCK_D": 32}
LONG = {"ROWS": 2, "POSITIONS": 16, "ROWS2": 16, "POSITIONS2": 2, "BLOCK_D": 32}
CHUNKS = {"ROWS": 32, "ROWS2": 32, "BLOCK_O": 16, "BLOCK_I": 16, "BLOCK_T": 16}
KERNELS: dict[str, tuple[Callable[..., Tensor], dict[str, int]]] = {
    "pairwise": (cross_pairs.pairwise, PAIRS),
    "rows": (cross_chunks.rows, CHUNKS),
}
shapes = st.tuples(st.integers(1, 2), sizes, sizes, *[st.integers(1, 2), sizes, sizes] * 2)  # g, i, o, K, b, T, ..


def operands(
    shape: tuple[int, ...], kinds: tuple[torch.dtype, ...], how: tuple[str, ...], seed: int = 0
) -> list[Tensor]:
    g, i, o, K, b, T, K2, b2, T2 = shape
    wanted = ((g, b, T, i), (K, g, b, T, o), (g, b2, T2, i), (K2, g, b2, T2, o))
    return [make(size, kinds[k], how[k], seed + k) for k, size in enumerate(wanted)]


def check_rectangle(run: Callable[[], Tensor], expected: Tensor, scale: Tensor) -> None:
    """Right, the same when run again, and written nowhere else."""
    with guarded():
        got = run()
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    assert torch.equal(got, run())
    assert error(got.cpu(), expected, scale) < 2e-6


def check(name: str, factors: list[Tensor], config: Config | None = None) -> None:
    expected = reference.cross_outer(*[t.cpu() for t in factors])
    scale = reference.cross_outer(*[t.abs().cpu() for t in factors])
    check_rectangle(lambda: KERNELS[name][0](*factors, torch.float32, config), expected, scale)


@pytest.mark.parametrize("name", KERNELS)
@given(shapes, dtypes, st.tuples(*[memory] * 4), seeds)
@few
def test_rectangles(name: str, shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, ...], seed: int) -> None:
    check(name, operands(shape, (dtype,) * 4, how, seed), Config(KERNELS[name][1], 4, 2, splits=1 + seed % 3))


# More rows, positions and numbers than one tile holds, of either factor, in whole blocks and not.
LARGE = {
    "many positions": ("pairwise", (1, 35, 67, 1, 3, 19, 2, 5, 9), PAIRS),
    "many positions of few rows": ("pairwise", (2, 33, 5, 1, 2, 37, 1, 17, 3), LONG),
    "whole": ("pairwise", (1, 64, 32, 1, 8, 4, 1, 4, 8), PAIRS),
    "chunks": ("rows", (2, 17, 33, 2, 9, 19, 1, 5, 7), CHUNKS),
    "whole chunks": ("rows", (1, 32, 16, 1, 20, 16, 1, 16, 32), CHUNKS | {"ROWS2": 16}),
}


@pytest.mark.parametrize("splits", [1, 5])
@pytest.mark.parametrize("case", LARGE)
def test_rectangles_larger_than_a_tile(case: str, splits: int) -> None:
    name, shape, constants = LARGE[case]
    check(name, operands(shape, FLOAT, ("offset", "sliced", "transposed", "offset")), Config(constants, 4, 2, splits))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("T", [(1, 1), (1, 20), (70, 5)])
def test_rectangles_as_configured(name: str, T: tuple[int, int]) -> None:
    check(name, operands((1, 5, 7, 1, 3, T[0], 2, 2, T[1]), FLOAT, ("contiguous",) * 4))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("how", MEMORY)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rectangles_in_any_layout(name: str, how: str, dtype: torch.dtype) -> None:
    factors = operands((2, 7, 5, 2, 3, 4, 1, 6, 2), (dtype,) * 4, (how, "contiguous", "transposed", how))
    check(name, factors, Config(KERNELS[name][1], 4, 2))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("kinds", [(torch.bfloat16, torch.float32) * 2, (torch.float16,) * 2 + (torch.float32,) * 2])
def test_rectangles_of_two_types(name: str, kinds: tuple[torch.dtype, ...]) -> None:
    """Between x and c of one factor, and between the factors."""
    check(name, operands((1, 7, 5, 2, 3, 2, 1, 4, 3), kinds, ("offset",) * 4))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("empty", range(9))
def test_rectangles_of_sizes_of_zero(name: str, empty: int) -> None:
    shape = tuple(0 if place == empty else 3 for place in range(9))
    got = KERNELS[name][0](*operands(shape, FLOAT, ("contiguous",) * 4), torch.float32)
    assert torch.equal(got.cpu(), torch.zeros(shape[3] * shape[4], shape[6] * shape[7]))


def test_many_rows_of_a_rectangle_go_through_memory() -> None:
    few_rows, many = cross_chunks.FEW_ROWS, cross_chunks.FEW_ROWS + 1
    config = cross_chunks.config_for
    assert config(90, torch.float32, few_rows, 8, few_rows, 8, 64, 64) is not None
    assert config(90, torch.float32, few_rows, 8, many, 8, 64, 64) is None
    assert config(90, torch.float32, few_rows, cross_chunks.FEW_POSITIONS + 1, 1, 8, 64, 64) is None
    factors = operands((1, 5, 7, 1, 3, 2, 1, many, 3), FLOAT, ("contiguous",) * 4)
    got = cross_chunks.rows(*factors, torch.float32)
    assert error(got.cpu(), reference.cross_outer(*[t.cpu() for t in factors])) < 2e-6


@pytest.mark.parametrize("name", KERNELS)
def test_rectangles_not_finite_show(name: str) -> None:
    """A NaN in one row reaches every entry of its row of the rectangle, and no other."""
    factors = operands((1, 7, 5, 1, 4, 3, 1, 6, 2), FLOAT, ("contiguous",) * 4)
    factors[1][0, 0, 2, 1, 3] = float("nan")
    got = KERNELS[name][0](*factors, torch.float32).cpu()
    assert torch.equal(got.isnan(), (torch.arange(4) == 2)[:, None].expand(4, 6))


@pytest.mark.parametrize("name", KERNELS)
def test_rectangles_by_the_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation = f"cross.{name}"
    monkeypatch.setitem(dispatch.TABLE, (operation, DEVICE), dispatch.TABLE[operation, "cuda"])
    monkeypatch.setitem(torch_form.CROSS, name, None)
    monkeypatch.setattr(torch_form, "route", lambda e, e2, known: name)
    factors = operands((2, 7, 5, 2, 3, 4, 1, 4, 2), FLOAT, ("offset",) * 4)
    with dispatch.use_backend("triton"):
        got = torch_form.cross_outer(*factors, torch.float32)
    assert error(got.cpu(), reference.cross_outer(*[t.cpu() for t in factors])) < 2e-6


# -- rows of a table --------------------------------------------------------------------------------------------------


def tables(
    shape: tuple[int, ...], V: int, dtype: torch.dtype, how: tuple[str, ...], seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The operands, and the rows [R, V d] of both with their absolute values; ids of the second lie one higher."""
    K, b, T, K2, b2, T2, d = shape
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (b, T), generator=generator), 1 + torch.randint(V, (b2, T2), generator=generator)
    c = make((K, b, T, d), dtype, how[0], seed), make((K2, b2, T2, d), dtype, how[1], seed + 1)
    rows = [reference.gathered_rows(i, v.cpu(), V + 1) for i, v in zip(ids, c, strict=True)]
    rows += [reference.gathered_rows(i, v.abs().cpu(), V + 1) for i, v in zip(ids, c, strict=True)]
    return [ids[0].to(DEVICE), c[0], ids[1].to(DEVICE), c[1]], rows


@given(
    st.tuples(*[st.integers(1, 2), sizes, sizes] * 2, sizes),
    st.sampled_from([1, 2, 40]),
    dtypes,
    st.tuples(memory, memory),
    seeds,
)
@few
def test_rectangles_of_a_table(
    shape: tuple[int, ...], V: int, dtype: torch.dtype, how: tuple[str, ...], seed: int
) -> None:
    given_, (J, J2, A, A2) = tables(shape, V, dtype, how, seed)
    config = Config(PAIRS, 4, 2, splits=1 + seed % 3)
    check_rectangle(lambda: cross_pairs.gathered(*given_, torch.float32, config), J @ J2.T, A @ A2.T)


@pytest.mark.parametrize("shape", [(1, 7, 19, 2, 5, 9, 35), (1, 2, 50, 1, 20, 3, 64), (2, 3, 1, 1, 4, 1, 5)])
def test_rectangles_of_a_table_as_configured(shape: tuple[int, ...]) -> None:
    given_, (J, J2, A, A2) = tables(shape, 11, torch.float32, ("offset", "sliced"), 0)
    check_rectangle(lambda: cross_pairs.gathered(*given_, torch.float32), J @ J2.T, A @ A2.T)


def test_ids_may_be_any_number() -> None:
    """Also those that stand elsewhere for no id, beside rows and positions beyond the last one."""
    ids = torch.tensor([[-1, -2, 0]], device=DEVICE)
    c = torch.ones(1, 1, 3, 4, device=DEVICE)
    got = cross_pairs.gathered(ids, c, ids.expand(3, 3), c.expand(1, 3, 3, 4), torch.float32)
    assert torch.equal(got.cpu(), torch.full((1, 3), 12.0))


@pytest.mark.parametrize("empty", range(7))
def test_rectangles_of_a_table_of_sizes_of_zero(empty: int) -> None:
    K, b, T, K2, b2, T2, d = (0 if place == empty else 3 for place in range(7))
    ids, ids2 = (torch.zeros(shape, dtype=torch.long, device=DEVICE) for shape in ((b, T), (b2, T2)))
    c, c2 = torch.randn(K, b, T, d, device=DEVICE), torch.randn(K2, b2, T2, d, device=DEVICE)
    got = cross_pairs.gathered(ids, c, ids2, c2, torch.float32)
    assert torch.equal(got.cpu(), torch.zeros(K * b, K2 * b2))


def test_rectangles_of_a_table_by_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch.TABLE, ("cross.gathered", DEVICE), dispatch.TABLE["cross.gathered", "cuda"])
    monkeypatch.setattr(torch_form, "_gathered", None)
    given_, (J, J2, A, A2) = tables((2, 3, 4, 1, 5, 2, 7), 3, torch.float32, ("offset", "offset"), 0)
    with dispatch.use_backend("triton"):
        got = torch_form.cross_gathered(*given_, torch.float32)
    assert error(got.cpu(), J @ J2.T, A @ A2.T) < 2e-6
