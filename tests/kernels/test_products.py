"""Products by either library are the product, and oneDNN is asked only where it may and pays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor

from gramjd.kernels import products, use_backend
from gramjd.kernels.symmetric import block_size
from tests.kernels.onednn import needs_onednn, onednn_for_everything
from tests.kernels.strategies import error, memory, seeds, sizes, tensor


@needs_onednn
@given(sizes, sizes, sizes, memory, memory, seeds)
def test_any_matrices(M: int, K: int, N: int, how: str, other: str, seed: int) -> None:
    a, b = tensor((M, K), torch.float32, how, seed), tensor((K, N), torch.float32, other, seed + 1)
    expected, without_signs = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    before = a.clone(), b.clone()
    with onednn_for_everything() as asked:
        got = products.product(a, b)
        total = torch.ones(M, N)
        products.add_product(total, a, b)
    assert got.shape == (M, N)
    assert bool(asked) == (b.is_contiguous() or b.mT.is_contiguous())
    assert error(got, expected, without_signs) < 2e-6
    assert error(total, 1 + expected, 1 + without_signs) < 2e-6
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


@needs_onednn
def test_the_smaller_operand_is_copied() -> None:
    with onednn_for_everything() as asked:
        left, right = torch.randn(300, 200), torch.randn(300, 20)
        got = products.product(left.T, right)
        # Where that would save less than the result has elements, it is worth more that it lies as asked for.
        short = products.product(left[:10].T, right[:10])
    assert asked == [(20, 300, 200), (200, 10, 20)]
    assert error(got, left.double().T @ right.double()) < 1e-6
    assert short.is_contiguous()


REFUSED = {
    "float64": ((256, 256), (256, 256), torch.float64),
    "small": ((64, 64), (64, 64), torch.float32),
    "thin": ((4, 2048), (2048, 2048), torch.float32),
    "a long sum": ((16, 1 << 19), (1 << 19, 16), torch.float32),
}


@pytest.mark.parametrize(("left", "right", "dtype"), REFUSED.values(), ids=REFUSED)
def test_left_to_pytorch(
    left: tuple[int, int], right: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_linear", _not_asked)
    a, b = torch.ones(left, dtype=dtype), torch.ones(right, dtype=dtype)
    assert torch.equal(products.product(a, b), torch.full((left[0], right[1]), float(left[1]), dtype=dtype))


def test_gaps_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN is hundreds of times slower there."""
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_linear", _not_asked)
    b = torch.ones(512, 513)[:, :512]
    assert torch.equal(products.product(torch.ones(512, 512), b), torch.full((512, 512), 512.0))


def _not_asked(x: Tensor, weight: Tensor) -> Tensor:
    raise AssertionError(f"asked for {tuple(x.shape)} by {tuple(weight.shape)}")


def test_settings_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: True)
    assert products.library() == "onednn"
    assert block_size(100) == 100
    with use_backend("torch"):
        assert products.library() == "torch"
        assert block_size(100) == 32
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert products.library() == "torch"
    torch.set_float32_matmul_precision("medium")
    try:
        assert products.library() == "torch"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert products.library() == "onednn"
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: False)
    assert products.library() == "torch"


def test_measured_once() -> None:
    """The answer stays the same for a process; what it is depends on the CPU."""
    products._onednn_is_faster.cache_clear()
    first = products._onednn_is_faster()
    assert products._onednn_is_faster() is first
    assert products._onednn_is_faster.cache_info().misses == 1
