"""The kernels' benchmark: wrong results are not timed, and the rates follow from the times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gramjd.cli import main
from gramjd.profiling.bench import kernel_operations, kernels
from gramjd.profiling.bench.__main__ import BENCHMARKS
from gramjd.profiling.bench.kernels import OPERATIONS, Case, ceilings, compare

SMALL = {
    "outer.product": (2, 2, 5, 1, 3, 4),
    "outer.pairwise": (2, 1, 3, 5, 7, 2),
    "outer.rows": (1, 2, 3, 5, 7, 2),
    "cross.product": (2, 3, 4, 2, 5, 1, 3),
    "cross.pairwise": (2, 3, 4, 2, 3, 2, 1, 2, 3),
    "cross.rows": (2, 3, 4, 2, 3, 2, 1, 2, 3),
    "cross.gathered": (2, 3, 4, 1, 2, 5, 6),
    "segments.pairwise": (2, 3, 4, 2, 3, 2),
    "norms.pair": (2, 3, 4, 5, 6),
    "gathered.pairwise": (2, 3, 4, 5),
    "rows": (6, 11),
    "convolution.rows": (2, 3, 2, 3, 2, 3, 2, 4),
    "weighted.outer": (2, 3, 4, 2, 5, 3),
}
CASES = [Case(name, shape, dtype) for name, shape in SMALL.items() for dtype in (torch.float32, torch.bfloat16)]


@pytest.fixture
def torch_as_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "kernel_of", lambda name: OPERATIONS[name].torch_form)
    whole = kernels.ceilings
    monkeypatch.setattr(kernels, "ceilings", lambda device, timer: whole(device, timer, 16))


def one_millisecond(function: Callable[[], object]) -> float:
    function()
    return 1.0


@pytest.mark.usefixtures("torch_as_kernel")
def test_right_results_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(CASES, "cpu", one_millisecond)
    assert len(found["results"]) == len(CASES)
    assert found["speed_up"] == dict.fromkeys(OPERATIONS, 1.0)
    assert all(str(case) in capsys.readouterr().out for case in CASES[:1])
    rows = next(row for row in found["results"] if row["operation"] == "rows")
    # 6 rows of 11 floats are read and 6 x 6 written; 21 inner products of 11 numbers.
    assert rows["bytes_per_s"] == pytest.approx(1e3 * 4 * (66 + 36))
    assert rows["flop_per_s"] == pytest.approx(1e3 * 2 * 21 * 11)
    json.dumps(found)


@pytest.mark.parametrize("wrong", [lambda G: 1.01 * G, lambda G: G * float("nan")])
@pytest.mark.parametrize("case", CASES[:1] + CASES[-1:], ids=str)
def test_wrong_results_are_not(case: Case, wrong: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    factor = 10 if case.operation == "weighted.outer" else 1
    form = OPERATIONS[case.operation].torch_form
    monkeypatch.setattr(kernels, "kernel_of", lambda _: lambda *given: factor * wrong(form(*given)))
    timed: list[object] = []
    with pytest.raises(SystemExit, match=case.operation):
        compare([case], "cpu", lambda function: float(timed.append(function) or 1))
    assert not timed


def test_segments_are_what_their_shape_says() -> None:
    x, c, starts = OPERATIONS["segments.pairwise"].make(2, 3, 4, 5, 7, 6)
    assert (x.shape[1], c.shape[0], c.shape[2], starts.shape) == (3, 2, 4, (5, 8))
    lengths = starts.diff(dim=1)
    assert lengths.min() >= 0
    assert 4 <= lengths.max() <= 6
    assert lengths.sum() == len(x) == c.shape[1] == starts[-1, -1]
    assert torch.equal(starts[1:, 0], starts[:-1, -1])
    assert kernel_operations.lengths(5, 7, 6) == lengths.sum(1).tolist()


def test_only_the_upper_half_of_a_gramian_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch form of 70 rows leaves out what lies below the diagonal; a kernel need not."""
    monkeypatch.setattr(kernels, "kernel_of", lambda _: lambda J, dtype=None: J.double() @ J.double().T)
    assert kernels.error(Case("rows", (70, 5), torch.float32), "cpu") < 1e-6


def test_ceilings() -> None:
    found = ceilings("cpu", one_millisecond, 8)
    assert found["bytes_per_s"] == pytest.approx(1e3 * 2 * 4 * 32 * 8)
    assert found["flop_per_s_float32"] == found["flop_per_s_bfloat16"] == pytest.approx(1e3 * 2 * 8**3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_needs_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "--json", str(tmp_path / "out.json")], BENCHMARKS) == 1
    assert "needs a CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu(tmp_path: Path) -> None:
    assert main(["kernels", "--operations", "rows", "--json", str(tmp_path / "out.json")], BENCHMARKS) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["speed_up"]) == {"rows"}
