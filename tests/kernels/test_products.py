"""Products by either library are the product, and which one computes them is a function of what was stated."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

import gramjd
from gramjd.engine import _torch
from gramjd.errors import BackendError
from gramjd.kernels import current_products, devices, products, use_backend
from gramjd.kernels.devices import Measured
from gramjd.kernels.machine import Cpu
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


@needs_onednn
@pytest.mark.parametrize(("left", "right", "dtype"), REFUSED.values(), ids=REFUSED)
def test_left_to_pytorch(
    left: tuple[int, int], right: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert products.onednn_works()
    monkeypatch.setattr(_torch, "product_by_onednn", _not_asked)
    a, b = torch.ones(left, dtype=dtype), torch.ones(right, dtype=dtype)
    with use_backend("onednn"):
        got = products.product(a, b)
    assert torch.equal(got, torch.full((left[0], right[1]), float(left[1]), dtype=dtype))


@needs_onednn
def test_gaps_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN is hundreds of times slower there."""
    assert products.onednn_works()
    monkeypatch.setattr(_torch, "product_by_onednn", _not_asked)
    b = torch.ones(512, 513)[:, :512]
    with use_backend("onednn"):
        got = products.product(torch.ones(512, 512), b)
    assert torch.equal(got, torch.full((512, 512), 512.0))


def _not_asked(x: Tensor, weight: Tensor) -> Tensor:
    raise AssertionError(f"asked for {tuple(x.shape)} by {tuple(weight.shape)}")


@needs_onednn
@pytest.mark.parametrize("backend", ["torch", "onednn"])
def test_a_large_product_goes_where_the_backend_says(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    linear = _torch.product_by_onednn
    monkeypatch.setattr(_torch, "product_by_onednn", lambda x, w: asked.append(x.shape) or linear(x, w))
    with use_backend(backend):
        products.product(torch.ones(256, 256), torch.ones(256, 256))
        assert block_size(100) == (100 if backend == "onednn" else 32)
    assert len(asked) == (backend == "onednn")


@contextmanager
def on(cpu: Cpu | None, **settings: Any) -> Iterator[None]:
    """In `"auto"` on a CPU, in a build with oneDNN or without, after a file of the user's own or without."""
    with pytest.MonkeyPatch.context() as patch, use_backend("auto"):
        patch.setattr(products, "this_cpu", lambda: cpu)
        patch.setattr(products, "onednn_works", lambda: settings.get("works", True))
        patch.setattr(devices, "_loaded", settings.get("own"))
        products._of_cpu.cache_clear()
        try:
            yield
        finally:
            products._of_cpu.cache_clear()


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def less_precise() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def disabled() -> Iterator[None]:
    before = torch.backends.mkldnn.enabled
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


ZEN5, ZEN4, XEON = Cpu("AuthenticAMD", 26, 2), Cpu("AuthenticAMD", 25, 17), Cpu("GenuineIntel", 6, 143)


@pytest.mark.parametrize(
    ("cpu", "library", "reason"),
    [
        (ZEN5, "onednn", "devices.json: AMD family 26 model 2"),
        (ZEN4, "torch", "devices.json: AMD family 25 model 17"),
        (XEON, "torch", "devices.json does not name Intel family 6 model 143"),
    ],
)
def test_auto_is_a_function_of_the_cpu(cpu: Cpu, library: str, reason: str) -> None:
    with on(cpu):
        assert current_products() == (library, reason)
        assert products.library() == library
        with deterministic():
            assert current_products() == ("torch", "deterministic algorithms")
        with use_backend("triton"):
            assert current_products() == (library, reason)
        with use_backend("torch"):
            assert current_products() == ("torch", 'backend "torch"')
        with use_backend("onednn"), deterministic():
            assert current_products() == ("onednn", 'backend "onednn"')


@pytest.mark.parametrize("stated", ["torch", "onednn"])
def test_a_file_of_ones_own_decides(stated: str) -> None:
    """Also against `devices.json`, and where algorithms are deterministic: it is a statement, too."""
    with on(ZEN5, own=Measured(ZEN5, stated, {})):
        expected = (stated, "the file that was loaded: AMD family 26 model 2")
        assert current_products() == expected
        with deterministic():
            assert current_products() == expected


@pytest.mark.parametrize(
    ("obstacle", "settings", "reason"),
    [
        (disabled, {}, "torch.backends.mkldnn is disabled"),
        (less_precise, {}, "torch.backends lets products be less precise"),
        (nullcontext, {"works": False}, "this build of PyTorch has no product by oneDNN"),
    ],
)
def test_what_stands_in_the_way_of_onednn(
    obstacle: Callable[[], AbstractContextManager[None]], settings: dict[str, bool], reason: str
) -> None:
    """`"auto"` does without and says so; where it was demanded, it is an error. Elsewhere it is no matter."""
    with on(ZEN5, **settings), obstacle():
        assert current_products() == ("torch", reason)
        with use_backend("onednn"), pytest.raises(BackendError, match=f'"onednn" cannot run: {reason}'):
            products.product(torch.ones(256, 256), torch.ones(256, 256))
        with use_backend("torch"):
            assert current_products().reason == 'backend "torch"'
    with on(XEON, **settings), obstacle():
        assert current_products().reason.startswith("devices.json does not name")


def test_no_clock_decides() -> None:
    """Of the library only what measures or reports progress imports a clock."""
    root = Path(gramjd.__file__).parent
    kernels = Path(products.__file__).parent
    files = [*root.glob("*.py"), *(root / "engine").rglob("*.py"), *(root / "aggregation").rglob("*.py")]
    files += kernels.rglob("*.py")
    clocks = {"time", "timeit", "datetime"}
    found = {
        file.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and clocks & {getattr(node, "module", None), *(name.name for name in node.names)}
    }
    assert len(files) > 60
    assert found == {"calibrate.py", "check.py"}
