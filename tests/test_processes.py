"""Several processes: what a step does under PyTorch's own parallel training, or refuses by name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("processes.py")


def run(scene: str, processes: int = 2) -> None:
    """Run a scene of `processes.py` in some processes, which must all end well within the time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parent.parent)}
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), scene],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        printed = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(printed)


@pytest.mark.parametrize(
    "scene",
    [
        "data_parallel",
        "data_parallel_reuse",
        "data_parallel_static_graph",
        "data_parallel_static_graph_reuse",
        "data_parallel_unused",
        "data_parallel_inputs",
        "data_parallel_accumulated",
        "fully_sharded",
        "fully_sharded_root_only",
        "tensor_parallel",
    ],
)
def test_scene(scene: str) -> None:
    run(scene)
