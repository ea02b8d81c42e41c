"""Section d: UPGrad's weights on the device beside one `eigh` of the same Gramian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gramjd.aggregation import DualProj, UPGrad
from gramjd.profiling.bench.gramians import FAMILIES
from gramjd.profiling.bench.weights import update_error
from gramjd.profiling.gpu.box import Box
from gramjd.profiling.gpu.timer import launches, milliseconds

SIZES = (16, 64, 256, 1024, 32, 128, 512, 2048, 4096)
CHECKED = 512  # the largest m whose weights are compared with those of the CPU
SOLVERS: dict[str, Callable[[Tensor], Tensor]] = {
    "UPGrad": UPGrad(),
    "UPGrad tol=1e-4": UPGrad(tol=1e-4),
    "UPGrad ridge=1e-4": UPGrad(ridge=1e-4),
    "DualProj": DualProj(),
}


def run(box: Box) -> None:
    """A row per Gramian and solver; the sizes between others come after them."""
    for m in box.within((4, 8) if box.dry else SIZES):
        for family in box.within(FAMILIES, lambda family: f"{family}, m = {m}"):  # noqa: B023
            J = FAMILIES[family](m).to(box.device)
            G = (J @ J.T).float()
            eigh = milliseconds(lambda: torch.linalg.eigh(G.double()), box.device, 0.0)  # noqa: B023
            for name in box.within(SOLVERS):
                row = {"gradients": family, "m": m, "solver": name, "eigh_ms": eigh}
                box.attempt(row, lambda: _measured(SOLVERS[name], G, eigh, box))  # noqa: B023


def _measured(solve: Callable[[Tensor], Tensor], G: Tensor, eigh: float, box: Box) -> dict[str, Any]:
    taken = milliseconds(lambda: solve(G), box.device, 0.0 if box.dry else 0.05)
    found: dict[str, Any] = {"ms": taken, "over_eigh": taken / eigh}
    if len(G) <= CHECKED:
        there = G.cpu()
        found["launches"] = launches(lambda: solve(G), box.device)
        found["error"] = update_error(there.double(), solve(G).cpu(), solve(there).double())
    return found
