"""Several processes that run one command as ranks of a group, as torchrun starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What is said where a process that has ended its program is aborted while it is torn down.
ABORTED = "terminate called without an active exception"


def run_ranks(
    count: int, arguments: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None
) -> None:
    """Run `python *arguments` in `count` processes, which must all end well within so many seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    given |= {"PYTHONPATH": str(ROOT), **(environment or {})}
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | given | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    well = [
        process.returncode == 0
        or (process.returncode == -signal.SIGABRT and ABORTED in text and "Traceback" not in text)
        for process, text in zip(started, printed, strict=True)
    ]
    assert all(well), "\n".join(printed)


def end() -> None:
    """End a process that has done all, without tearing down PyTorch, whose threads of gloo abort it now and then."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
