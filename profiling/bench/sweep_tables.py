"""The table of `sweep`: a row per library, and the models that are worth a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gramjd.profiling.bench.captions import listed, loaded, placed
from gramjd.text_table import markdown, short

# What no model with independent samples may take more than, over a plain step of more than so many milliseconds.
MOST, FROM = 3.0, 20.0


def swept(results: Mapping[str, Any]) -> str:
    """A row per library: how many are right, independent, dense; the spread of time over the plain step."""
    rows = [["library", "models", "right", "largest error", "independent samples", "of these with dense rows"]]
    rows[0] += ["step over plain: median", "largest", "largest, plain step over 20 ms"]
    names = {name.split()[0] for name in results["cases"]}
    for library in sorted(names):
        rows.append(_library(library, [c for n, c in results["cases"].items() if n.split()[0] == library]))
    notes = [*_slow(results["cases"]), *_dense(results["cases"]), *_left_out(results["cases"])]
    return f"{markdown(rows)}\n\n{placed(results)}\n\n{loaded(results)}{listed(notes)}"


def _measured(cases: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [case for case in cases if "ratio" in case]


def _library(name: str, cases: list[Mapping[str, Any]]) -> list[str]:
    found = _measured(cases)
    right = [case for case in found if case["error"] < _allowed(case)]
    apart = [case for case in found if case["independent"]]
    ratios = sorted(case["ratio"]["median"] for case in apart)
    large = [case["ratio"]["median"] for case in apart if case["plain_ms"] > FROM]
    return [
        name,
        str(len(found)),
        str(len(right)),
        f"{max(case['error'] for case in found):.0e}",
        str(len(apart)),
        str(sum(bool(case["dense"]) for case in apart)),
        short(ratios[len(ratios) // 2]),
        short(ratios[-1]),
        short(max(large)) if large else "none",
    ]


def _allowed(case: Mapping[str, Any]) -> float:
    """Rounding: parts of some models compute in float32 whatever they are given."""
    return 1e-5 if case["checked_in"] == "float64" else 1e-4


def _slow(cases: Mapping[str, Any]) -> list[str]:
    """The models with independent samples and a plain step that is not small, above the bound."""
    slow = [
        f"{name}: {short(case['ratio']['median'])} times a plain step of {short(case['plain_ms'])} ms."
        for name, case in cases.items()
        if "ratio" in case and case["independent"] and case["plain_ms"] > FROM and case["ratio"]["median"] > MOST
    ]
    return slow or [
        f"no model with independent samples and a plain step above {FROM:.0f} ms takes more than {MOST:.0f}."
    ]


def _dense(cases: Mapping[str, Any]) -> list[str]:
    return [f"{name}: dense rows, {case['dense'][0]}." for name, case in cases.items() if case.get("dense")]


def _left_out(cases: Mapping[str, Any]) -> list[str]:
    gone = [name for name, case in cases.items() if "skipped" in case]
    refused = [f"{name}: `{case['refused']}`" for name, case in cases.items() if "refused" in case]
    return [*refused, f"not built from sizes this small: {', '.join(gone)}."] if gone else refused
