"""Section a: results on the device are right. The GPU tests, the zoo of models, solving without waiting, capture."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import gramjd
from gramjd.profiling.gpu.box import Box

# One run per set of kernels, so that a fault of the device in one leaves the others their say.
TESTS = ("tests/kernels/triton/test_gpu.py", "tests/test_capture.py", "tests/profiling/test_memory.py")
SIZES = (2, 16, 65, 256)


def run(box: Box) -> None:
    """All checks, the tests of the kernels first."""
    for name in box.within(SOLVERS):
        for m in SIZES[:1] if box.dry else SIZES:
            box.attempt({"check": "no synchronisation", "name": name, "m": m}, lambda: _solved(box, name, m))  # noqa: B023
    box.attempt({"check": "capture"}, lambda: _captured(box))
    for path in box.within(() if box.dry else TESTS):
        box.attempt({"check": "pytest -m gpu", "name": path}, lambda: _tested(box, path))  # noqa: B023
    _zoo(box)
    wrong = [row for row in box.found["rows"] if row.get("failed")]
    box.note(right=not wrong)


SOLVERS: dict[str, Callable[[], Any]] = {"UPGrad": gramjd.UPGrad, "DualProj": gramjd.DualProj}


@contextmanager
def _waiting_is_an_error(device: str) -> Any:
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _solved(box: Box, name: str, m: int) -> dict[str, Any]:
    """Weights on the device, made without a synchronisation, against those of the CPU on the same Gramian."""
    J = torch.randn(m, 4 * m, generator=torch.Generator().manual_seed(m), dtype=torch.float64)
    G = (J @ J.T).float()
    there = G.to(box.device)
    SOLVERS[name]()(there)  # whatever is loaded or chosen at the first call may wait
    with _waiting_is_an_error(box.device):
        weights = SOLVERS[name]()(there)
    expected = SOLVERS[name]()(G)
    return _compared(weights, expected, 1e-4)


def _compared(got: Tensor, expected: Tensor, limit: float) -> dict[str, Any]:
    error = float((got.cpu().double() - expected.cpu().double()).norm() / expected.double().norm().cpu())
    return {"error": error} if error <= limit else {"failed": f"relative error {error:.1e}, allowed {limit:.0e}"}


def _captured(box: Box) -> dict[str, Any]:
    """Six recorded steps against six plain ones."""

    def trained(record: bool) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
            data = [torch.randn(24, 16) for _ in range(6)]
        model = model.to(box.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)

        def step(x: Tensor) -> None:
            optimizer.zero_grad(set_to_none=False)
            gramjd.gram_backward(model(x).square().sum(1))
            optimizer.step()

        data = [x.to(box.device) for x in data]
        replay = gramjd.capture(step, data[0], warmup=3) if record else step
        for x in data if record else [data[0]] * 3 + data:  # the recording has trained three times
            replay(x)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    return _compared(trained(box.device == "cuda"), trained(False), 1e-4)


def checkout() -> Path:
    """The folder of the repository: the present one if it holds the tests, else the one that this file is in."""
    here = Path.cwd()
    return here if (here / "tests/zoo").is_dir() else Path(__file__).resolve().parent.parent.parent


def _tested(box: Box, path: str) -> dict[str, Any]:
    """The tests marked `gpu` of a file, in a process of their own; what they print is kept if they are cut."""
    told = box.folder / f"pytest-{Path(path).stem}.txt"
    # Warnings of other versions of torch are no fault of a kernel.
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", path]
    with told.open("w") as out:
        try:
            status = subprocess.run(
                command, cwd=checkout(), stdout=out, stderr=subprocess.STDOUT, timeout=max(10.0, 0.6 * box.left())
            ).returncode
        except subprocess.TimeoutExpired:
            return {"cut": f"see {told.name}"}
    said = (told.read_text().strip().splitlines() or ["nothing"])[-1].strip("= ")
    return {"failed": f"{said}; see {told.name}"} if status else {"said": said}


def _zoo(box: Box) -> None:
    """Every second quick model of the zoo, built on the device, against the float64 Jacobian there."""
    sys.path.insert(0, str(checkout()))
    try:
        oracle, cases = import_module("tests.oracle"), import_module("tests.zoo").CASES
    except ImportError as error:
        box.add({"check": "zoo", "failed": f"run this in a checkout of the repository: {error}"})
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    chosen = [case for case in cases.values() if not case.slow and not case.may_refuse][:: 120 if box.dry else 2]
    found: dict[str, list[str]] = {"right": [], "wrong": [], "not built": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in box.within(chosen, lambda case: case.name):
            for dtype in case.dtypes:
                outcome, text = _compare(oracle, case, dtype, box.device)
                found[outcome].append(f"{case.name} {dtype}{text}")
            box.note(zoo={"wrong": found["wrong"], "not built": found["not built"]})
    row = {"check": "zoo", **{outcome: len(names) for outcome, names in found.items()}}
    box.add(row | ({"failed": "; ".join(found["wrong"][:3])} if found["wrong"] else {}))


def _compare(oracle: ModuleType, case: Any, dtype: torch.dtype, device: str) -> tuple[str, str]:
    """How a case went, and the error if there was one. Only the model is made with another default device."""
    try:
        with torch.device(device):
            losses, inputs = case.make(dtype)
    except Exception as error:  # a model that makes tensors for the CPU
        return "not built", f": {type(error).__name__}: {str(error)[:100]}"
    try:
        got = gramjd.gramian(losses, inputs=inputs)
        with torch.device(device):
            expected = oracle.oracle_gramian(losses, inputs)
        oracle.assert_close_gramian(got, expected.cpu(), oracle.tolerance(case, dtype))
    except Exception as error:
        return "wrong", f": {type(error).__name__}: {str(error)[:200]}"
    return "right", ""
