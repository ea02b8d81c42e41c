"""Triton's interpreter on the checks, in a process of its own: it must be chosen before the kernels are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


CHECKS = ("", "convolution_", "cross_", "norms_", "rectangle_", "segments_")


@pytest.mark.parametrize("checks", [f"{name}checks.py" for name in CHECKS])
def test_by_the_interpreter(checks: str) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(here / checks)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        command, cwd=here.parents[2], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
