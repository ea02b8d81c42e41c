"""A trace of one step for Chrome's or Perfetto's viewer, its phases named."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from gramjd.engine import _torch
from gramjd.errors import InputError
from gramjd.profiling.marks import ignore, tag
from gramjd.profiling.methods import METHODS
from gramjd.profiling.target import Work


def save_trace(work: Work, path: Path | str, method: str = "gramjd", aggregator: str = "UPGrad") -> Path:
    """Write a step as Chrome trace JSON; open it in chrome://tracing or ui.perfetto.dev.

    The ranges `gramjd::walk`, `gramjd::weights` and `gramjd::backward` are gramjd's own; events without length, named
    `gramjd::phase::NAME`, say where each phase of any method begins.

    Args:
        work: from `gramjd.profiling.target.build`.
        path: where to; its folder is made if it is not there.
        method: a key of `METHODS`.
        aggregator: class name of the aggregator.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    step = METHODS[method](work, aggregator)
    step(ignore)
    work.clear()
    on_gpu = work.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, profile_memory=True, record_shapes=True) as recording:
        with record_function(f"step: {method}"):
            step(tag)
        if on_gpu:
            torch.cuda.synchronize(work.device)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    recording.export_chrome_trace(str(path))
    return Path(path)


def save_snapshot(work: Work, path: Path | str, method: str = "gramjd", aggregator: str = "UPGrad") -> Path:
    """Write the CUDA allocator's history of a step, for pytorch.org/memory_viz.

    Raises:
        InputError: the losses are not on a GPU.
    """
    if work.device.type != "cuda":
        raise InputError(f"a memory snapshot is CUDA's; the losses are on {work.device}: use the timeline instead")
    step = METHODS[method](work, aggregator)
    step(ignore)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _torch.record_memory_history(1_000_000)
    try:
        step(ignore)
        torch.cuda.synchronize(work.device)
        _torch.dump_memory_history(str(path))
    finally:
        _torch.record_memory_history(None)
    return Path(path)
