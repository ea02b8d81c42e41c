"""The closing tables of the digits demo."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from gramjd.experiments.demo_cost import StepCost
from gramjd.experiments.training import Run

LEVEL = 1.05  # final losses closer than this are called level

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
            *_diverged(runs),
            f"Time of a step over that of {costs[0].method}, median of pairs (quartiles): {slower}.",
            "Cosine and conflicts are averages over all steps of a run; loss and accuracy are those at its end.",
        )
    )


def conclusion(best: Sequence[Run], costs: Sequence[StepCost], batch: int) -> str:
    """One sentence on who reached the lower training loss on each network, and at what price.

    Args:
        best: one run per network and method; the first method is what the other is compared with.
        costs: of a step, per network and method.
        batch: losses per step.
    """
    base, other = dict.fromkeys(run.method for run in best)
    found = {(run.network, run.method): run for run in best}
    networks = list(dict.fromkeys(run.network for run in best))
    verdicts: dict[str, list[str]] = {}
    for network in networks:
        verdict, numbers = _compared(found[network, base], found[network, other])
        verdicts.setdefault(verdict, []).append(f"on the {network.upper()}{numbers}")
    outcome = ", and ".join(f"{verdict} {' and '.join(where)}" for verdict, where in verdicts.items())
    longer = " and ".join(
        f"{cost.over_first.median:.1f} of {base}'s on the {cost.network.upper()}"
        for cost in costs
        if cost.method == other
    )
    return (
        f"With {batch} losses per step and each method at its best rate, {other} {outcome};"
        f" one of its steps took as long as {longer}."
    )


def _compared(base: Run, other: Run) -> tuple[str, str]:
    """Who reached the lower loss on a network, and the numbers; runs within 5 % are level."""
    if base.diverged and other.diverged:
        return f"and {base.method} both diverged at every rate", ""
    if other.diverged:
        return f"was behind {base.method}, as it diverged at every rate,", ""
    if base.diverged:
        return f"was ahead of {base.method}, which diverged at every rate,", ""
    ratio = other.loss[-1] / base.loss[-1]
    word = "was level with" if 1 / LEVEL <= ratio <= LEVEL else "was ahead of" if ratio < 1 else "was behind"
    return f"{word} {base.method}", (
        f" (training loss {other.loss[-1]:.2g} against {base.loss[-1]:.2g},"
        f" held-out accuracy {100 * other.accuracy:.1f} % against {100 * base.accuracy:.1f} %)"
    )


def _diverged(runs: Sequence[Run]) -> list[str]:
    """A line that names the runs that diverged, if any did."""
    rates: dict[str, list[str]] = {}
    for run in runs:
        if run.diverged:
            rates.setdefault(f"{run.network} {run.method}", []).append(f"{run.rate:g}")
    named = "; ".join(f"{who} at {', '.join(at)}" for who, at in rates.items())
    return [f"Runs that diverged: {named}."] if rates else []


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
