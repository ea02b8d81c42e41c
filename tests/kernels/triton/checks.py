"""What every kernel must do, by Triton's interpreter (`test_interpreted.py`) and on a GPU (`test_gpu.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gramjd.kernels import reference
from gramjd.kernels.triton import chunks, common, pairwise, symmetric
from gramjd.kernels.triton import weighted as weighted_kernel
from gramjd.kernels.triton.common import Config
from tests.kernels.strategies import MEMORY, error, memory, seeds, tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
PAD = 1024

dtypes = st.sampled_from(list(DTYPES))
sizes = st.sampled_from([1, 2, 3, 5, 7, 11])
shapes = st.tuples(st.integers(1, 2), st.integers(1, 2), *[sizes] * 4)  # g, K, b, T, i, o
few = settings(max_examples=8)


@contextmanager
def guarded() -> Iterator[None]:
    """All buffers the kernels write start as NaN and lie between stretches of NaN, which must still be there after."""
    buffers: list[Tensor] = []

    def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
        size = torch.Size(shape).numel()
        buffers.append(torch.full((size + 2 * PAD,), float("nan"), device=like.device))
        return buffers[-1][PAD : PAD + size].view(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "empty", empty)
        yield
    assert buffers
    for buffer in buffers:
        assert buffer[:PAD].isnan().all()
        assert buffer[-PAD:].isnan().all()


def make(shape: tuple[int, ...], dtype: torch.dtype, how: str, seed: int) -> Tensor:
    """As in the CPU tests, with NaN between the numbers and around them, in the same memory layout on the device."""
    values = tensor(shape, dtype, how, seed)
    if DEVICE == "cpu":
        return values
    base = values if values._base is None else values._base
    return base.to(DEVICE).as_strided(values.shape, values.stride(), values.storage_offset())


def check_gram(run: Callable[[], Tensor], expected: Tensor, scale: Tensor, limit: float) -> None:
    """Right, exactly symmetric, the same when run again, and written nowhere else."""
    with guarded():
        got = run()
    assert got.dtype == torch.float32
    assert torch.equal(got, got.T)
    assert torch.equal(got, run())
    assert error(got.cpu(), expected, scale) < limit


def check_outer(
    kernel: Callable[..., Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    how: tuple[str, str],
    seed: int,
    config: Config | None = None,
) -> None:
    g, K, b, T, i, o = shape
    x, c = make((g, b, T, i), dtype, how[0], seed), make((K, g, b, T, o), dtype, how[1], seed + 1)
    expected = reference.gram_outer(x.cpu(), c.cpu())
    scale = reference.gram_outer(x.abs().cpu(), c.abs().cpu())
    check_gram(lambda: kernel(x, c, torch.float32, config), expected, scale, DTYPES[dtype])


GENERAL = {"pairwise": pairwise.pairwise, "rows": chunks.rows}


@pytest.mark.parametrize("name", GENERAL)
@given(shapes, dtypes, st.tuples(memory, memory), seeds)
@few
def test_outer(name: str, shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, str], seed: int) -> None:
    check_outer(GENERAL[name], shape, dtype, how, seed)


@given(shapes, dtypes, st.tuples(memory, memory), seeds)
@few
def test_product(shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, str], seed: int) -> None:
    check_outer(symmetric.product, (*shape[:3], 1, *shape[4:]), dtype, how, seed)


# More rows, positions and numbers than one tile holds, in whole blocks and not, and sums in more parts than there are.
LARGE = {
    "product": (symmetric.product, (2, 1, 37, 1, 67, 128), Config({"BLOCK": 16, "BLOCK_D": 32}, 4, 2, splits=3)),
    "product, stacked": (
        symmetric.product,
        (1, 3, 11, 1, 64, 96),
        Config({"BLOCK": 32, "BLOCK_D": 32}, 4, 2, splits=2),
    ),
    "product, one launch": (symmetric.product, (1, 1, 35, 1, 33, 65), None),
    "pairwise, long": (
        pairwise.pairwise,
        (1, 2, 3, 19, 35, 64),
        Config({"ROWS": 2, "POSITIONS": 16, "BLOCK_D": 32}, 4, 2, splits=5),
    ),
    "pairwise, whole": (
        pairwise.pairwise,
        (2, 1, 9, 4, 64, 32),
        Config({"ROWS": 8, "POSITIONS": 4, "BLOCK_D": 32}, 4, 2, splits=10),
    ),
    "rows": (
        chunks.rows,
        (2, 2, 7, 19, 17, 33),
        Config({"ROWS": 16, "BLOCK_O": 16, "BLOCK_I": 16, "BLOCK_T": 16}, 4, 2, splits=5),
    ),
    "rows, whole": (chunks.rows, (1, 1, 16, 16, 32, 32), None),
    "rows, through memory": (chunks.rows, (1, 1, chunks.FEW_ROWS + 1, 3, 5, 7), None),
}


@pytest.mark.parametrize("name", LARGE)
def test_larger_than_a_tile(name: str) -> None:
    kernel, shape, config = LARGE[name]
    if name == "rows, through memory":
        x, c = torch.randn(1, 33, 3, 5, device=DEVICE), torch.randn(1, 1, 33, 3, 7, device=DEVICE)
        expected = reference.gram_outer(x.cpu(), c.cpu())
        assert error(kernel(x, c, torch.float32).cpu(), expected) < 2e-6
        return
    check_outer(kernel, shape, torch.float32, ("offset", "contiguous"), 1, config)


@pytest.mark.parametrize("how", MEMORY)
@pytest.mark.parametrize("kernel", [symmetric.product, pairwise.pairwise, chunks.rows])
def test_types_of_x_and_c_differ(kernel: Callable[..., Tensor], how: str) -> None:
    x, c = make((1, 5, 1, 7), torch.bfloat16, how, 0), make((2, 1, 5, 1, 3), torch.float32, how, 1)
    expected, scale = (reference.gram_outer(a.cpu(), b.cpu()) for a, b in ((x, c), (x.abs(), c.abs())))
    check_gram(lambda: kernel(x, c, torch.float32), expected, scale, 2e-6)


@pytest.mark.parametrize("empty", range(6))
@pytest.mark.parametrize("kernel", [pairwise.pairwise, chunks.rows])
def test_sizes_of_zero(kernel: Callable[..., Tensor], empty: int) -> None:
    """No group, no position, no input, no output: G is zero; no row: it is empty."""
    g, K, b, T, i, o = (0 if place == empty else 3 for place in range(6))
    got = kernel(torch.randn(g, b, T, i, device=DEVICE), torch.randn(K, g, b, T, o, device=DEVICE), torch.float32)
    assert torch.equal(got.cpu(), torch.zeros(K * b, K * b))


@given(st.integers(1, 40), st.integers(0, 150), dtypes, memory, seeds)
@few
def test_rows(R: int, d: int, dtype: torch.dtype, how: str, seed: int) -> None:
    J = make((R, d), dtype, how, seed)
    expected, scale = reference.gram_rows(J.cpu()), reference.gram_rows(J.cpu().abs())
    config = Config({"BLOCK": 16, "BLOCK_D": 32}, 4, 2, splits=1 + seed % 4)
    check_gram(lambda: symmetric.gram_rows(J, torch.float32, config), expected, scale, DTYPES[dtype])


@given(st.tuples(st.integers(1, 2), sizes, sizes, sizes), st.sampled_from([1, 2, 40]), dtypes, memory, seeds)
@few
def test_gathered(shape: tuple[int, ...], V: int, dtype: torch.dtype, how: str, seed: int) -> None:
    K, b, T, d = shape
    ids = torch.randint(V, (b, T), generator=torch.Generator().manual_seed(seed))
    c = make((K, b, T, d), dtype, how, seed)
    expected, scale = (reference.gram_gathered(ids, values.cpu(), V) for values in (c, c.abs()))
    config = Config({"ROWS": 8, "POSITIONS": 4, "BLOCK_D": 32}, 4, 2, splits=1 + seed % 3)
    check_gram(lambda: pairwise.gathered(ids.to(DEVICE), c, torch.float32, config), expected, scale, DTYPES[dtype])


@given(shapes, dtypes, st.tuples(memory, memory), seeds)
@few
def test_weighted(shape: tuple[int, ...], dtype: torch.dtype, how: tuple[str, str], seed: int) -> None:
    """16-bit floats are rounded twice: the weighted cotangent, as in a backward pass, and the result."""
    g, K, b, T, i, o = shape
    x, c = make((g, b, T, i), dtype, how[0], seed), make((K, g, b, T, o), dtype, how[1], seed + 1)
    w = make((K * b,), torch.float32, "offset", seed + 2)
    config = Config({"BLOCK_O": 16, "BLOCK_I": 16, "BLOCK_S": 16}, 4, 2, splits=1 + seed % 3)
    with guarded():
        got = weighted_kernel.weighted_outer(x, c, w, config)
    assert got.dtype == dtype
    expected = reference.weighted_outer(x.cpu(), c.cpu(), w.cpu())
    scale = reference.weighted_outer(x.cpu().abs(), c.cpu().abs(), w.cpu().abs())
    assert error(got.cpu(), expected, scale) < {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]


def test_small_weights_do_not_underflow() -> None:
    """A float16 holds nothing under 6e-8; weights of 1e-9 times cotangents of 1e3 are fine all the same."""
    x, c, w = (
        torch.ones(1, 4, 1, 16, device=DEVICE),
        torch.full((1, 1, 4, 1, 16), 1e3, device=DEVICE),
        torch.full((4,), 1e-9, device=DEVICE),
    )
    got = weighted_kernel.weighted_outer(x.half(), c.half(), w)
    assert error(got.cpu(), torch.full((1, 16, 16), 4e-6, dtype=torch.float64)) < 0.02


@pytest.mark.parametrize("empty", range(6))
def test_weighted_sizes_of_zero(empty: int) -> None:
    g, K, b, T, i, o = (0 if place == empty else 3 for place in range(6))
    x, c = torch.randn(g, b, T, i, device=DEVICE), torch.randn(K, g, b, T, o, device=DEVICE)
    assert torch.equal(
        weighted_kernel.weighted_outer(x, c, torch.ones(K * b, device=DEVICE)).cpu(), torch.zeros(g, o, i)
    )


def test_not_finite_shows() -> None:
    """A NaN or an infinity among the gradients reaches every entry of its row, and no other row."""
    J = torch.randn(5, 40, device=DEVICE)
    J[2, 7] = float("nan")
    G = symmetric.gram_rows(J, torch.float32).cpu()
    bad = torch.arange(5) == 2
    assert torch.equal(G.isnan(), bad[:, None] | bad[None, :])
