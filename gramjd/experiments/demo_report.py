"""The closing tables of the demo, and what they come to in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gramjd.experiments.report import align, average
from gramjd.experiments.steps import StepCost
from gramjd.experiments.training import Run

LEVEL = 1.05  # final losses closer than this are called level
HEADER = (
    *("network", "method", "rate", "training loss", "held-out accuracy", "cosine to mean", "conflicting pairs"),
    *("ms/step", "peak MB/step"),
)

Costs = Mapping[tuple[str, str], StepCost]  # (network, method) to the cost of a step in milliseconds


def format_report(best: Sequence[Run], runs: Sequence[Run], costs: Costs) -> str:
    """Two tables: each method at its own best learning rate, then both at the same rates.

    Args:
        best: one run per network and method.
        runs: all of them.
        costs: of a step.
    """
    base = best[0].method
    same = sorted(runs, key=lambda run: (run.network, run.rate))
    named = diverged(runs, lambda run: f"{run.network} {run.method}")
    slower = ", ".join(
        f"{network} {cost.over_first.median:.2f} ({cost.over_first.low:.2f} to {cost.over_first.high:.2f})"
        for (network, method), cost in costs.items()
        if method != base
    )
    return "\n".join(
        (
            "Each method at its best rate (least area under the training-loss curve)",
            align([HEADER, *(_row(run, costs) for run in best)]),
            "",
            "Both at the same rates",
            align([HEADER, *(_row(run, costs) for run in same)]),
            "",
            *([f"Runs that diverged: {named}."] if named else []),
            f"Time of a step over that of {base}, median of pairs (quartiles): {slower}.",
            "Cosine and conflicts are averages over all steps of a run; loss and accuracy are those at its end.",
        )
    )


def conclusion(best: Sequence[Run], costs: Costs, batch: int) -> str:
    """One sentence on who reached the lower training loss on each network, and at what price.

    Args:
        best: one run per network and method; the first method is what the other is compared with.
        costs: of a step.
        batch: losses per step.
    """
    base, other = dict.fromkeys(run.method for run in best)
    found = {(run.network, run.method): run for run in best}
    verdicts: dict[str, list[str]] = {}
    for network in dict.fromkeys(run.network for run in best):
        verdict, numbers = _compared(found[network, base], found[network, other])
        verdicts.setdefault(verdict, []).append(f"on the {network.upper()}{numbers}")
    outcome = ", and ".join(f"{verdict} {' and '.join(where)}" for verdict, where in verdicts.items())
    longer = " and ".join(
        f"{cost.over_first.median:.1f} of {base}'s on the {network.upper()}"
        for (network, method), cost in costs.items()
        if method == other
    )
    return (
        f"With {batch} losses per step and each method at its best rate, {other} {outcome};"
        f" one of its steps took as long as {longer}."
    )


def diverged(runs: Sequence[Run], name: Callable[[Run], str]) -> str:
    """`NAME at RATE, RATE; NAME at RATE` for the runs that diverged; empty if none did."""
    rates: dict[str, list[str]] = {}
    for run in runs:
        if run.diverged:
            rates.setdefault(name(run), []).append(f"{run.rate:g}")
    return "; ".join(f"{who} at {', '.join(at)}" for who, at in rates.items())


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


def _row(run: Run, costs: Costs) -> list[str]:
    cost = costs[run.network, run.method]
    return [
        run.network,
        run.method,
        f"{run.rate:g}",
        "diverged" if run.diverged else f"{run.loss[-1]:.4f}",
        f"{100 * run.accuracy:.1f} %",
        average(run.cosine, "{:.3f}"),
        average([100 * share for share in run.conflicts], "{:.1f} %"),
        f"{cost.time.median:.2f}",
        f"{cost.peak_bytes / 1e6:.2f}",
    ]
