"""Section c: a training step over plain training, eager and recorded as one CUDA graph: time, memory, launches."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

import gramjd
from gramjd.profiling.bench import step
from gramjd.profiling.bench.step import Contender, step_of
from gramjd.profiling.gpu.box import Box
from gramjd.profiling.gpu.models import Item, items
from gramjd.profiling.gpu.timer import launches, milliseconds
from gramjd.profiling.memory import peak_bytes
from gramjd.profiling.methods import RefusalError

SECONDS = 0.3  # of timed steps per contender
CONTENDERS = {
    **step.CONTENDERS,
    "gramjd Mean triton": Contender("gramjd", "Mean", "triton"),
    "gramjd UPGrad triton": Contender("gramjd", "UPGrad", "triton"),
}


def run(box: Box) -> None:
    """All models, a row per contender. Contenders run one after the other: copies of a large model do not all fit."""
    for item in box.within(items(box.device, box.dry), lambda item: f"{item.name}, m = {item.m}"):
        plain: dict[str, float] = {}
        for name in item.contenders:
            row = {"model": item.name, "m": item.m, "contender": name}
            box.attempt(row, lambda: _measured(item, name, box, plain))  # noqa: B023
            gc.collect()
            if box.device == "cuda":
                torch.cuda.empty_cache()


def _measured(item: Item, name: str, box: Box, plain: dict[str, float]) -> dict[str, Any]:
    """Times, memory and launches of one contender; `plain` holds those of the plain step, which comes first."""
    if name.endswith("triton") and box.dry:
        return {"refused": "needs a GPU"}
    try:
        take, clear = step_of(item.build(), CONTENDERS[name])
        take()
    except RefusalError as error:
        return {"refused": str(error)}
    found: dict[str, Any] = {"ms": milliseconds(take, box.device, 0.0 if box.dry else SECONDS)}
    clear()
    found["peak_bytes"] = peak_bytes(take, box.device)
    found["launches"] = launches(take, box.device)
    found |= _recorded(take, box.device) if not name.startswith("torchjd") else {}
    if name == "plain":
        plain |= {key: found[key] for key in ("ms", "peak_bytes", "captured_ms") if key in found}
    names = {"ms": "time", "captured_ms": "captured", "peak_bytes": "memory"}
    return found | {f"{names[key]}_over_plain": found[key] / base for key, base in plain.items() if key in found}


def _recorded(take: Callable[[], None], device: str) -> dict[str, Any]:
    """Milliseconds of the step as one CUDA graph, or why it cannot be one."""
    if device != "cuda":
        return {}
    try:
        replay = gramjd.capture(take)
        return {"captured_ms": milliseconds(replay, device, SECONDS)}
    except Exception as error:
        torch.cuda.synchronize()
        return {"not_captured": f"{type(error).__name__}: {str(error).strip()[:200]}"}
