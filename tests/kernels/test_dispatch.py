"""Who runs an operation: torch on a CPU, without a trace of Triton, and what the table says elsewhere."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gramjd.engine.autograd import in_graph_task
from gramjd.errors import BackendError, InputError
from gramjd.kernels import convolution, cross, devices, dispatch, gathered, norms, outer, rows, segments, weighted
from gramjd.kernels.convolution import Window
from gramjd.kernels.dispatch import current_backend, implementation, use_backend

FLOATS = (torch.float32, torch.float32, torch.float32)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    dispatch._without_triton.cache_clear()
    dispatch._function.cache_clear()
    with use_backend("auto"):  # whatever the whole run is told
        yield
    dispatch._without_triton.cache_clear()
    dispatch._function.cache_clear()


def fake(*arguments: object) -> Tensor:
    return torch.full((2, 2), 7.0)


def listed(monkeypatch: pytest.MonkeyPatch, *names: str, architecture: str = "cpu") -> None:
    """Kernels that were measured to be worth it; "cpu" is the architecture of a CPU."""
    monkeypatch.setattr(devices, "_loaded", devices.ENTRIES[-1]._replace(kernels={architecture: names}))


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel for a CPU that is known to be fast."""
    monkeypatch.setitem(dispatch.TABLE, ("outer.product", "cpu"), f"{__name__}:fake")
    listed(monkeypatch, "outer.product")


def test_torch_on_a_cpu_without_importing_triton() -> None:
    program = """
import sys, torch, gramjd
from gramjd.kernels.dispatch import implementation
x = torch.randn(4, 3)
weight = torch.randn(2, 3, requires_grad=True)
gramjd.gram_backward((x @ weight.T).square().sum(1))
assert implementation("outer.product", "cpu", torch.float32) is None
assert "triton" not in sys.modules, "triton was imported"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("on_cpu")
def test_an_entry_is_used_where_the_device_matches() -> None:
    found = implementation("outer.product", "cpu", *FLOATS)
    assert found is not None
    assert torch.equal(found(), fake())
    assert implementation("outer.rows", "cpu", *FLOATS) is None
    for backend in ("torch", "onednn"):
        with use_backend(backend):
            assert implementation("outer.product", "cpu", *FLOATS) is None


OPERATIONS = {
    "outer.product": lambda: outer.gram_outer(torch.ones(1, 2, 1, 3), torch.ones(1, 1, 2, 1, 3), torch.float32),
    "outer.rows": lambda: outer.gram_outer(torch.ones(1, 2, 9, 1), torch.ones(1, 1, 2, 9, 1), torch.float32),
    "outer.pairwise": lambda: outer.gram_outer(torch.ones(1, 2, 2, 512), torch.ones(1, 1, 2, 2, 512), torch.float32),
    "cross.product": lambda: cross.cross_outer(*(torch.ones(1, 2, 1, 3), torch.ones(1, 1, 2, 1, 3)) * 2, torch.float32),
    "cross.pairwise": lambda: cross.cross_outer(
        *(torch.ones(1, 2, 2, 512), torch.ones(1, 1, 2, 2, 512)) * 2, torch.float32
    ),
    "cross.rows": lambda: cross.cross_outer(*(torch.ones(1, 2, 9, 1), torch.ones(1, 1, 2, 9, 1)) * 2, torch.float32),
    "cross.gathered": lambda: cross.cross_gathered(
        *(torch.arange(2)[:, None], torch.ones(1, 2, 1, 64)) * 2, torch.float32
    ),
    "segments.pairwise": lambda: segments.gram_segments(
        torch.ones(3, 2), torch.ones(1, 3, 4), torch.tensor([[0, 1, 3]]), torch.float32
    ),
    "norms.pair": lambda: norms.norms_outer(torch.ones(1, 2, 2, 512), torch.ones(2, 1, 2, 2, 512), torch.float32).view(
        2, 2
    ),
    "gathered.pairwise": lambda: gathered.gram_gathered(
        torch.arange(2)[:, None], torch.ones(1, 2, 1, 64), torch.float32
    ),
    "rows": lambda: rows.gram_rows(torch.ones(2, 3), torch.float32),
    "convolution.rows": lambda: convolution.gram_convolution(
        torch.ones(2, 1, 9, 9), torch.ones(1, 2, 1, 9, 9), Window((1, 1), (1, 1), (0, 0), (1, 1), 1), torch.float32
    ),
    "weighted.outer": lambda: weighted.weighted_outer(torch.ones(1, 2, 1, 3), torch.ones(1, 1, 2, 1, 3), torch.ones(2)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_ask_the_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, name)
    assert not torch.equal(OPERATIONS[name](), fake())
    monkeypatch.setitem(dispatch.TABLE, (name, "cpu"), f"{__name__}:fake")
    assert torch.equal(OPERATIONS[name](), fake())


def test_every_kernel_is_asked_for() -> None:
    assert {operation for operation, _ in dispatch.TABLE} == set(OPERATIONS)


def test_unmeasured_kernels_are_taken_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch.TABLE, ("outer.product", "cuda"), f"{__name__}:fake")
    monkeypatch.setattr(devices, "architecture", lambda device: "sm_90")
    listed(monkeypatch, architecture="sm_90")
    assert implementation("outer.product", "cuda", *FLOATS) is None
    with use_backend("triton"):
        assert implementation("outer.product", "cuda", *FLOATS) is not None
        assert implementation("outer.shared", "cuda", *FLOATS) is None  # has no kernel


def test_the_list_is_that_of_the_architecture_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two GPUs in one machine, and none for a device that is not known."""
    of = {0: "sm_80", 1: "sm_90", 2: "sm_61"}
    monkeypatch.setitem(dispatch.TABLE, ("outer.product", "cuda"), f"{__name__}:fake")
    monkeypatch.setattr(devices, "architecture", lambda device: of[device.index])
    listed(monkeypatch, "outer.product", architecture="sm_90")
    found = [implementation("outer.product", torch.device("cuda", index), *FLOATS) for index in of]
    assert found == [None, fake, None]
    assert implementation("outer.rows", torch.device("cuda", 1), *FLOATS) is None


def test_every_entry_exists() -> None:
    pytest.importorskip("triton")
    for target in dispatch.TABLE.values():
        assert callable(dispatch._function(target))


REFUSED = {
    "device": ("cpu", FLOATS, r"on cpu, and there are kernels for cuda"),
    "operand": ("cuda", (torch.float64, torch.float32), r"float64, and the kernels take float32, bfloat16, float16"),
    "result": ("cuda", (torch.float32, torch.float64), r"float64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_why_not(case: str) -> None:
    device, dtypes, reason = REFUSED[case]
    assert implementation("outer.product", device, *dtypes) is None
    with use_backend("triton"), pytest.raises(BackendError, match=reason):
        implementation("outer.product", device, *dtypes)


@pytest.mark.parametrize(("found", "reason"), [(None, r"pip install 'gramjd\[triton\]'"), ("3.1.0", "triton is 3.1.0")])
def test_triton_missing_or_too_old(monkeypatch: pytest.MonkeyPatch, found: str | None, reason: str) -> None:
    real = importlib.import_module

    def instead(name: str) -> object:
        if name != "triton":
            return real(name)
        if found is None:
            raise ModuleNotFoundError(name)
        return SimpleNamespace(__version__=found)

    monkeypatch.setattr(importlib, "import_module", instead)
    monkeypatch.setattr(devices, "architecture", lambda device: "sm_90")
    listed(monkeypatch, "outer.product", architecture="sm_90")
    assert implementation("outer.product", "cuda", *FLOATS) is None
    with use_backend("triton"), pytest.raises(BackendError, match=reason):
        implementation("outer.product", "cuda", *FLOATS)


def test_backends_nest_and_end() -> None:
    with use_backend("torch"):
        with use_backend("triton"):
            assert current_backend() == "triton"
        assert current_backend() == "torch"
    with pytest.raises(ZeroDivisionError), use_backend("torch"):
        1 / 0  # noqa: B018
    assert current_backend() == "auto"


def test_unknown_backend() -> None:
    with (
        pytest.raises(InputError, match="'cuda' is not known: use one of 'auto', 'torch', 'onednn', 'triton'"),
        use_backend("cuda"),
    ):
        pass


def test_the_walk_sees_it() -> None:
    """The walk runs inside a backward pass, which must not lose the choice on its way through the engine."""
    seen = []
    with use_backend("torch"):
        in_graph_task(lambda: seen.append(current_backend()))
    assert seen == ["torch"]
