"""What the runs of the image experiments come to: per search its best rate, with mean and standard error over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjd.experiments import iwrm_plots
from gramjd.experiments.data.sets import DATA
from gramjd.experiments.demo_report import align
from gramjd.experiments.studies import areas, select, studies

HEADER = (
    "aggregator",
    "optimiser, batch",
    "runs",
    "best rate",
    "seeds that converged",
    "area",
    "last loss",
    "held-out, %",
    "cosine, first epoch",
    "cosine, last epoch",
)


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per search: its settings, every rate with its area (of the search's seeds), the curves at the best.

    A search that is under way has the best rate so far: the least mean area among the rates with most seeds tried.
    """
    return [_summary(runs, study) for study in studies(runs)]


def _summary(runs: Sequence[Mapping[str, Any]], study: Any) -> dict[str, Any]:
    by_rate = areas(runs, study)
    # The search is by seed 0, 1, ...: those that every rate was tried with.
    common = min(len(of) for of in by_rate.values())
    searched = {rate: sum(of[s] for s in range(common)) / common for rate, of in by_rate.items() if _first(of, common)}
    best = min(searched, key=lambda rate: searched[rate], default=None)
    chosen = [run for run in select(runs, study) if run["rate"] == best and not run["diverged"]]
    entry: dict[str, Any] = {
        **dataclasses.asdict(study),
        "runs": sum(len(of) for of in by_rate.values()),
        "refused": sum("refused" in run for run in select(runs, study)),
        "seconds": round(sum(run["seconds"] for run in select(runs, study)), 1),
        "rates": {f"{rate:g}": _number(searched[rate]) for rate in sorted(searched)},
        "search_seeds": common,
    }
    if best is None or not chosen or math.isinf(searched[best]):
        return entry | {"best": None}
    at_best = [run for run in select(runs, study) if run["rate"] == best]
    return entry | {
        "best": {
            "rate": best,
            "seeds": sorted(run["seed"] for run in chosen),
            "diverged": len(at_best) - len(chosen),
            "area": mean_and_error([run["area"] for run in chosen]),
            "accuracy": mean_and_error([run["accuracy"] for run in chosen]),
            "loss": [mean_and_error(list(values)) for values in zip(*(run["loss"] for run in chosen), strict=True)],
            "cosine": [mean_and_error(list(values)) for values in zip(*(run["cosine"] for run in chosen), strict=True)],
        }
    }


def mean_and_error(values: Sequence[float | None]) -> list[float | None]:
    """Mean and its standard error; the error is null with one value, both are where a value is missing.

    >>> mean_and_error([1.0, 3.0])
    [2.0, 1.0]
    """
    known = [value for value in values if value is not None]
    if not known:
        return [None, None]
    mean = sum(known) / len(known)
    if len(known) < 2:
        return [_number(mean), None]
    variance = sum((value - mean) ** 2 for value in known) / (len(known) - 1)
    return [_number(mean), _number(math.sqrt(variance / len(known)))]


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The entries as text, a block per image set."""
    blocks = []
    for data in dict.fromkeys(entry["data"] for entry in entries):
        rows = [list(HEADER), *(cells(entry) for entry in entries if entry["data"] == data)]
        blocks.append(f"{DATA[data].title}\n{align(rows)}")
    return "\n\n".join(blocks)


def cells(entry: Mapping[str, Any]) -> list[str]:
    """One entry as the cells of `HEADER`."""
    best = entry["best"]
    first = [entry["weighting"], f"{entry['optimizer']}, {entry['batch']}", str(entry["runs"])]
    if best is None:
        return [*first, "none converged", *("-" for _ in HEADER[4:])]
    return [
        *first,
        f"{best['rate']:.3g}",
        f"{len(best['seeds'])} of {len(best['seeds']) + best['diverged']}",
        with_error(best["area"]),
        with_error(best["loss"][-1]),
        with_error([None if x is None else 100 * x for x in best["accuracy"]], "{:.1f}"),
        with_error(best["cosine"][0], "{:.2f}"),
        with_error(best["cosine"][-1], "{:.2f}"),
    ]


def with_error(pair: Sequence[float | None], shape: str = "{:.3f}") -> str:
    """`mean ± error`, or what there is of it.

    >>> with_error([1.0, 0.25]), with_error([1.0, None]), with_error([None, None])
    ('1.000 ± 0.250', '1.000', '-')
    """
    known = [shape.format(x) for x in pair if x is not None]
    return " ± ".join(known) if known else "-"


def save(entries: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """A plot per image set, optimiser and batch size; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for key in dict.fromkeys((e["data"], e["optimizer"], e["batch"]) for e in entries):
        group = [e for e in entries if (e["data"], e["optimizer"], e["batch"]) == key and e["best"] is not None]
        if group:
            path = folder / f"iwrm-{key[0]}-{key[1]}-{key[2]}.png"
            iwrm_plots.draw(group).savefig(path, dpi=100)
            found.append(path)
    return found


def _first(of: Mapping[int, float], seeds: int) -> bool:
    return all(seed in of for seed in range(seeds))


def _number(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
