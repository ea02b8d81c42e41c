"""The closing tables of the digits demo."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from gramjd.demos.cost import StepCost
from gramjd.demos.training import Run

HEADER = (
    "network",
    "method",
    "rate",
    "training loss",
    "held-out accuracy",
    "cosine to mean",
    "conflicting pairs",
    "ms/step",
    "peak MB/step",
)


def format_report(best: Sequence[Run], runs: Sequence[Run], costs: Sequence[StepCost]) -> str:
    """Two tables: each method at its own best learning rate, then both at the same rates.

    Args:
        best: one run per network and method.
        runs: all of them.
        costs: of a step, per network and method.
    """
    by_method = {(cost.network, cost.method): cost for cost in costs}

    def rows(of: Sequence[Run]) -> list[list[str]]:
        return [_row(run, by_method[run.network, run.method]) for run in of]

    same = sorted(runs, key=lambda run: (run.network, run.rate))
    slower = ", ".join(
        f"{cost.network} {cost.over_first.median:.2f} ({cost.over_first.low:.2f} to {cost.over_first.high:.2f})"
        for cost in costs
        if cost.method != costs[0].method
    )
    return "\n".join(
        (
            "Each method at its best rate (least area under the training-loss curve)",
            align([list(HEADER), *rows(best)]),
            "",
            "Both at the same rates",
            align([list(HEADER), *rows(same)]),
            "",
            f"Time of a step over that of {costs[0].method}, median of pairs (quartiles): {slower}.",
            "Cosine and conflicts are averages over all steps of a run; loss and accuracy are those at its end.",
        )
    )


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell: the first two to the left, the rest to the right.

    >>> print(align([["a", "b", "c"], ["dd", "e", "10"]]))
    a   b   c
    --  -  --
    dd  e  10
    """
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    rule = ["-" * width for width in widths]
    lines = [rows[0], rule, *rows[1:]]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _row(run: Run, cost: StepCost) -> list[str]:
    loss = "diverged" if run.diverged else f"{run.loss[-1]:.4f}"
    return [
        run.network,
        run.method,
        f"{run.rate:g}",
        loss,
        f"{100 * run.accuracy:.1f} %",
        _average(run.cosine, "{:.3f}"),
        _average([100 * share for share in run.conflicts], "{:.1f} %"),
        f"{cost.milliseconds.median:.2f}",
        f"{cost.peak_bytes / 1e6:.2f}",
    ]


def _average(values: Sequence[float], shape: str) -> str:
    mean = float(torch.tensor(values, dtype=torch.float64).nanmean()) if values else math.nan
    return "-" if math.isnan(mean) else shape.format(mean)
