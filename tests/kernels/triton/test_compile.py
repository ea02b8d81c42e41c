"""Configurations compile for GPUs that are not there, fit into them, and use their tensor cores where they should."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from gramjd.kernels.triton import chunks, pairwise, symmetric
from tests.kernels.triton.compiling import SHARED, Case, compiled, every_case

# A few loop invariants, which the assembler may put aside to run more threads; never tiles.
SPILLED = 32


def check(case: Case, arch: int) -> None:
    use = compiled(case, arch)
    assert use.shared <= SHARED[arch]
    assert use.spilled <= SPILLED
    # Products of float32 are exact to the last bit or two only off the tensor cores.
    assert use.tensor_cores == (case.uses_dot and case.dtype != torch.float32)
    assert "tf32" not in use.ptx


@pytest.mark.parametrize("arch", [90, 100])
def test_one_of_each_kernel(arch: int) -> None:
    """In bfloat16, on the two latest generations: the first configuration of each kernel. The slow tests take all."""
    seen = {case.kernel: case for case in reversed(list(every_case(arch, torch.bfloat16)))}
    assert len(seen) == 13
    for case in seen.values():
        check(case, arch)


def test_float32_stays_off_the_tensor_cores() -> None:
    config = symmetric.config_for(90, torch.float32, 16, 4096)
    check(Case(symmetric.partial, config, torch.float32, (("WHOLE", True),)), 90)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arch", SHARED)
def test_every_configuration(arch: int, dtype: torch.dtype) -> None:
    wrong = []
    for case in every_case(arch, dtype):
        try:
            check(case, arch)
        except AssertionError as error:
            wrong.append(f"{case}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.exhaustive
@pytest.mark.parametrize("arch", SHARED)
def test_float16(arch: int) -> None:
    """As bfloat16 but for the type of the operands: one of each kernel."""
    for case in {case.kernel: case for case in every_case(arch, torch.float16)}.values():
        check(case, arch)


@pytest.mark.parametrize("T", [5, 16, 63, 64, 100, 1000])
@pytest.mark.parametrize("R", [1, 3, 32, 200])
def test_tiles_waste_little(R: int, T: int) -> None:
    """Where there is much to do, a quarter more positions than there are at most."""
    constants = pairwise.config_for(90, torch.float32, R, T, 64).constants
    rows, positions = constants["ROWS"], constants["POSITIONS"]
    padded = -(-R // rows) * rows * -(-T // positions) * positions
    assert R * T < 1000 or padded <= 1.25 * R * T


def test_many_rows_go_through_memory() -> None:
    assert chunks.config_for(90, torch.float32, chunks.FEW_ROWS, chunks.FEW_POSITIONS, 64, 64) is not None
    assert chunks.config_for(90, torch.float32, chunks.FEW_ROWS + 1, 8, 64, 64) is None
    assert chunks.config_for(90, torch.float32, 8, chunks.FEW_POSITIONS + 1, 64, 64) is None
