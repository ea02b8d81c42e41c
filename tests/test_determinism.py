"""The same training gives the same bits in every process, whatever else the machine does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.kernels.onednn import needs_onednn

ROOT = Path(__file__).parents[1]
BACKENDS = ("auto", "torch", "onednn")
PROCESSES = 6


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that computes for as long as the block lasts."""
    burning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        burning.kill()
        burning.wait()


def trained() -> list[list[str]]:
    """Backend, library and hash of the parameters, per backend, from a new process with the default threads."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    command = [sys.executable, "-m", "tests.training_hash", *BACKENDS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
@needs_onednn
def test_training_is_the_same_in_every_process() -> None:
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for number in range(PROCESSES):
        with neighbour() if number % 2 else nullcontext():
            for backend, library, parameters in trained():
                found[backend].add((library, parameters))
    assert set(found) == set(BACKENDS)
    assert {backend: len(different) for backend, different in found.items()} == dict.fromkeys(BACKENDS, 1)
    # The two libraries round differently, so that a change of library would have been seen.
    [(by_torch, one)], [(by_onednn, other)] = found["torch"], found["onednn"]
    assert (by_torch, by_onednn) == ("torch", "onednn")
    assert one != other
    assert found["auto"] in (found["torch"], found["onednn"])
