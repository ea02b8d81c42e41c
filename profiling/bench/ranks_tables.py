"""The tables of several ranks: what was measured, and bytes by the formulas for more ranks than a machine has."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from gramjd.profiling.bench.captions import placed
from gramjd.text_table import markdown

# Matrices [o, i] of GPT-2 with 124 million parameters: a block's, and how many blocks; then the table, which is the
# head as well.
BLOCK, BLOCKS, TABLE = ((2304, 768), (768, 768), (3072, 768), (768, 3072)), 12, (50257, 768)


def ranks_table(results: Mapping[str, Any]) -> str:
    """Time, memory and bytes by kind of training; the error of local Gramians below."""
    rows = [["training", "ranks", "sent for G, MB", "gradients, MB", "by factors", "by rows", "memory", "time"]]
    for case in results["cases"]:
        rows.append(
            [
                case["kind"],
                str(case["ranks"]),
                f"{case['sent'] / 1e6:.2f}",
                f"{case['gradients'] / 1e6:.1f}",
                f"{case['factors']:.0f}",
                f"{case['rows']:.0f}",
                f"{case['memory']:.2f}",
                f"{case['time']:.2f}",
            ]
        )
    loads = [case["load"] for case in results["cases"]]
    under = f"{results['clock']}; load of the machine, these ranks among it: {min(loads):.1f} to {max(loads):.1f}."
    return f"{markdown(rows)}\n\n{placed(results)} {under}"


def local_error(results: Mapping[str, Any]) -> str:
    """How far the mean of the ranks' own updates is from the joint one."""
    found = results["errors"]
    counts = sorted({one["ranks"] for one in found})
    rows = [["steps of training before", *[f"{count} ranks" for count in counts]]]
    for steps in sorted({one["steps"] for one in found}):
        cells = []
        for count in counts:
            errors = [one["error"] for one in found if (one["steps"], one["ranks"]) == (steps, count)]
            cells.append(f"{fmean(errors):.2f} ({min(errors):.2f} to {max(errors):.2f})")
        rows.append([str(steps), *cells])
    return markdown(rows)


def sent_for_linear(m: int, positions: int, out: int, into: int, ranks: int) -> tuple[float, float]:
    """Bytes in float32 that a rank sends for a matrix, by factors and by rows."""
    by_factors = 4 * m * positions * (out + into) * (ranks - 1) / 2
    return by_factors, 4 * m * out * into * (ranks - 1) / ranks


def at_scale(results: Mapping[str, Any]) -> str:
    """Bytes for GPT-2 124M by the formulas, and how long they take on wires of a stated speed; nothing is measured."""
    rows = [["ranks", "sentences per rank", "positions", "sent for G, GB", "plain all-reduce, GB", "over plain"]]
    sizes = [shape for _ in range(BLOCKS) for shape in BLOCK] + [TABLE]
    plain = 4 * sum(out * into for out, into in sizes)
    for ranks in (8, 64, 1024):
        for m, positions in ((1, 512), (4, 512), (4, 64)):
            total = sum(min(sent_for_linear(m, positions, out, into, ranks)) for out, into in sizes)
            reduced = 2 * plain * (ranks - 1) / ranks
            cells = [f"{total / 1e9:.2f}", f"{reduced / 1e9:.2f}", f"{total / reduced:.1f}"]
            rows.append([str(ranks), str(m), str(positions), *cells])
    return markdown(rows)
