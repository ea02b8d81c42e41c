"""One Gramian over all ranks of a group, against one process that has all losses; faults end on all ranks alike."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# Scenes that a run of so many ranks makes one after the other: starting a process takes longer than a scene.
TOGETHER = {
    "models": (3, "mlp_backward", "mlp_reuse", "cnn_backward", "cnn_reuse", "tasks_backward", "tasks_reuse", "gramian"),
    "tied and uneven": (2, "tied_backward", "tied_reuse", "empty_rank", "empty_first"),
    "four ranks": (4, "mlp_reuse", "tied_backward", "empty_rank"),
    "means": (3, "means", "means_reuse", "means_wrapped"),
    "wrapped": (2, "wrapped", "wrapped_reuse", "wrapped_static", "wrapped_views", "wrapped_unused"),
    "faults": (2, "not_finite", "another_structure", "another_graph", "in_the_walk"),
    "later faults": (2, "in_the_weights", "no_losses", "bad_option"),
    "some of them": (3, "subgroup"),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_ranks(name: str) -> None:
    ranks, *scenes = TOGETHER[name]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.scenes", *scenes],
            cwd=ROOT,
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        printed = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(printed)
