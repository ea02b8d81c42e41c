"""The tables of docs/benchmarks.md, a sentence of README.md and their figures, made from profiling/results.

    python -m gramjd.profiling.bench tables           # rewrite the tables, redraw the figures
    python -m gramjd.profiling.bench tables --check   # exit 1 if they do not match the results

A table stands between `<!-- table: NAME -->` and `<!-- end table -->`; `TABLES` says what makes it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gramjd.profiling.bench import readme_figures
from gramjd.profiling.bench.captions import listed, loaded, placed
from gramjd.profiling.bench.compiled_tables import compiled_steps
from gramjd.profiling.bench.ranks_tables import at_scale, local_error, ranks_table
from gramjd.profiling.bench.sweep_tables import swept
from gramjd.profiling.bench.weightings import ROUGH
from gramjd.text_table import filled, markdown, short

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path("profiling/results")
PAGES = (Path("README.md"), Path("docs/benchmarks.md"))
DIFFERENT = 1e-3  # relative distance of two Gramians; rounding of float32 stays far below
WEIGHTS_SIZES = (2, 8, 16, 32, 128, 256, 512)


def overview(results: Mapping[str, Any]) -> str:
    """One sentence: what a step with UPGrad costs over a plain step, with gramjd and with TorchJD."""
    ours, theirs = (_ranges(results, f"{library} UPGrad") for library in ("gramjd", "torchjd"))
    facts = results["environment"]
    return (
        f"On {ours['count']} benchmark cases a step with UPGrad takes {ours['time']} times as long as plain training"
        f" and {ours['memory']} times its memory;\nTorchJD's engine runs {theirs['count']} of them, with"
        f" {theirs['time']} times the time and {theirs['memory']} times the memory ({facts['date']}, {facts['cpu']},"
        f"\n{facts['cores']} cores; [all numbers](docs/benchmarks.md)). The figure shows each model at its largest m."
    )


def step_time(results: Mapping[str, Any]) -> str:
    """Time of a step over the plain step's: median, and in brackets the quartiles."""
    names = _contenders(results)
    rows = [["case", "m", "plain step, ms", *names]]
    for case in results["cases"].values():
        outcome = case["contenders"]
        plain = f"{outcome['plain']['milliseconds']['median']:.1f}"
        rows.append([case["title"], str(case["m"]), plain, *(_ratio(outcome[name]) for name in names)])
    return f"{markdown(rows)}\n\n{placed(results)}{_notes(results)}"


def beside(results: Mapping[str, Any]) -> str:
    """The same, with the clock and the load of the machine."""
    return f"{step_time(results)}\n\n{loaded(results)}"


def step_memory(results: Mapping[str, Any]) -> str:
    """Peak memory of a step beyond what was held before it, gradients included, over that of the plain step."""
    names = _contenders(results)
    rows = [["case", "m", "plain step, MB", *names]]
    for case in results["cases"].values():
        outcome = case["contenders"]
        plain = outcome["plain"]["peak_bytes"]
        cells = ["refused" if "refused" in outcome[n] else f"{outcome[n]['peak_bytes'] / plain:.2f}" for n in names]
        rows.append([case["title"], str(case["m"]), f"{plain / 1e6:.1f}", *cells])
    return markdown(rows)


def weights(results: Mapping[str, Any]) -> str:
    """UPGrad's weights from a Gramian: milliseconds, beside one `eigh` and TorchJD, with TorchJD's error."""
    found = [row for row in results["results"] if row["weighting"] == "UPGrad" and "rank" not in row]
    rows = [["Gramian", "m", "exact, ms", f"{ROUGH}, ms", "eigh, ms", "TorchJD, ms", "TorchJD over exact", "its error"]]
    for row in found:
        if row["m"] in WEIGHTS_SIZES and "eigh" in row["contenders"]:
            times = [short(row["contenders"][name]["ms"]) for name in ("exact", ROUGH, "eigh")]
            rows.append([row["gradients"], str(row["m"]), *times, *_beside(row["contenders"])])
    load = f"; load of the machine: {results['load']:.1f}" if results.get("load") is not None else ""
    threads = f"; threads: {results['environment']['threads']}{load}."
    notes = [
        *_refusals(found),
        *_within(found),
        *(_large(row) for row in found if "peak_bytes" in row["contenders"]["exact"]),
    ]
    return f"{markdown(rows)}\n\n{placed(results)[:-1]}{threads}" + listed(notes)


def weights_others(results: Mapping[str, Any]) -> str:
    """The same of the other weightings, on some of the Gramians."""
    found = [row for row in results["results"] if row["weighting"] != "UPGrad"]
    rows = [["weighting", "Gramian", "m", "exact, ms", "eigh, ms", "TorchJD, ms", "TorchJD over exact", "its error"]]
    for row in found:
        if row["m"] in WEIGHTS_SIZES and (row["gradients"].endswith("trained") or row["gradients"] == "conflicting"):
            times = [short(row["contenders"][name]["ms"]) for name in ("exact", "eigh")]
            rows.append([row["weighting"], row["gradients"], str(row["m"]), *times, *_beside(row["contenders"])])
    return markdown(rows) + listed(_refusals(found))


def weights_singular(results: Mapping[str, Any]) -> str:
    """UPGrad's weights where the cosines are close to singular, over those of a random Gramian of the same size."""
    rows = [["Gramian", "m", "rank", "exact, ms", "random, ms", "over random"]]
    for row in (row for row in results["results"] if "rank" in row):
        ours, random = (row["contenders"][name]["ms"] for name in ("exact", "random"))
        rows.append(
            [row["gradients"], str(row["m"]), str(row["rank"]), short(ours), short(random), short(ours / random)]
        )
    return markdown(rows)


TABLES: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "overview": ("step_cpu.json", overview),
    "step-time": ("step_cpu.json", step_time),
    "step-time-kept": ("step_cpu_kept.json", step_time),
    "step-time-torch": ("step_cpu_torch.json", step_time),
    "compiled": ("compiled_cpu.json", compiled_steps),
    "few": ("few_cpu.json", beside),
    "foreign": ("foreign_cpu.json", beside),
    "sweep": ("sweep_cpu.json", swept),
    "step-memory": ("step_cpu.json", step_memory),
    "ranks": ("ranks_cpu.json", ranks_table),
    "ranks-scale": ("ranks_cpu.json", at_scale),
    "ranks-error": ("ranks_cpu.json", local_error),
    "weights": ("weights.json", weights),
    "weights-singular": ("weights.json", weights_singular),
    "weights-others": ("weights.json", weights_others),
}


def render(text: str, root: Path = ROOT) -> str:
    """`text` with each marked table made anew from the results under `root`.

    Raises:
        KeyError: a marker names no table.
    """
    return filled(text, root, RESULTS, TABLES, lambda path: json.loads(path.read_text()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if anything is out of date")


def run(args: argparse.Namespace) -> int:
    """Rewrite the tables, or with `--check` say whether they are up to date."""
    before = {page: (ROOT / page).read_text() for page in PAGES}
    after = {page: render(text) for page, text in before.items()}
    changed = [page for page in PAGES if before[page] != after[page]]
    stale = readme_figures.outdated(ROOT, RESULTS)
    if args.check and changed:
        print(
            f"{changed[0]} does not match profiling/results: run python -m gramjd.profiling.bench tables",
            file=sys.stderr,
        )
        return 1
    if args.check and stale:
        print(f"docs/figures do not match profiling/results ({', '.join(stale)}): run the same", file=sys.stderr)
        return 1
    for page in changed:
        (ROOT / page).write_text(after[page])
    if stale:
        readme_figures.write(ROOT, RESULTS)
    return 0


def _ranges(results: Mapping[str, Any], name: str) -> dict[str, str]:
    """Number of cases that a contender runs, its least and greatest time and memory over the plain step."""
    cases = [case["contenders"] for case in results["cases"].values() if "refused" not in case["contenders"][name]]
    times = [case[name]["ratio"]["median"] for case in cases]
    peaks = [case[name]["peak_bytes"] / case["plain"]["peak_bytes"] for case in cases]
    spans = {key: f"{short(min(of))} to {short(max(of))}" for key, of in (("time", times), ("memory", peaks))}
    return {"count": str(len(cases)), **spans}


def _contenders(results: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys(name for case in results["cases"].values() for name in case["contenders"])
    return [name for name in names if name != "plain"]


def _ratio(outcome: Mapping[str, Any]) -> str:
    if "refused" in outcome:
        return "refused"
    ratio = outcome["ratio"]
    return f"{short(ratio['median'])} ({short(ratio['low'])} to {short(ratio['high'])})"


def _beside(contenders: Mapping[str, Any]) -> list[str]:
    """TorchJD's time, that over ours, and its error."""
    theirs = contenders.get("torchjd")
    if theirs is None or "refused" in theirs:
        return ["refused" if theirs else "not run", "", ""]
    error = f"{theirs['error']:.0e}" if theirs["error"] is not None else "-"
    return [short(theirs["ms"]), short(theirs["ms"] / contenders["exact"]["ms"]), error]


def _refusals(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What TorchJD said, once for each weighting."""
    said = {
        row["weighting"]: row["contenders"]["torchjd"]["refused"]
        for row in rows
        if "refused" in row["contenders"].get("torchjd", {})
    }
    return [f"{name}: TorchJD refused. `{text}`" for name, text in said.items()]


def _within(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What `tol` saves on the networks' Gramians, and how far it is from the exact update on all."""
    timed = [row for row in rows if "eigh" in row["contenders"]]
    networks = [row for row in timed if row["gradients"].endswith((", init", ", trained")) and row["m"] >= 128]
    lines = []
    if networks:
        ratios = [row["contenders"][ROUGH]["ms"] / row["contenders"]["exact"]["ms"] for row in networks]
        sizes = f"m = {min(row['m'] for row in networks)} to {max(row['m'] for row in networks)}"
        lines.append(
            f"networks, {sizes}: `{ROUGH}` takes {short(min(ratios))} to {short(max(ratios))} times the exact solve,"
            f" in the median {short(median(ratios))}."
        )
    errors = [row["contenders"][ROUGH]["error"] for row in timed]
    return [*lines, f"largest error of an update with `{ROUGH}`: {max(e for e in errors if e is not None):.0e}."]


def _large(row: Mapping[str, Any]) -> str:
    exact = row["contenders"]["exact"]
    size = f"{exact['peak_bytes'] / 2**20:.0f} MiB"
    return f"{row['gradients']}, m = {row['m']}: exact in {exact['ms'] / 1e3:.2f} s; peak beyond the Gramian {size}."


def _notes(results: Mapping[str, Any]) -> str:
    """Which models TorchJD refused and why, a line per reason; where its Gramian is not ours."""
    reasons: dict[str, tuple[str, dict[str, None], dict[str, None]]] = {}
    differing = []
    for name, case in results["cases"].items():
        for contender, outcome in case["contenders"].items():
            if "refused" in outcome:
                text = outcome["refused"]
                # Messages that differ in their numbers only have one reason.
                _, names, who = reasons.setdefault(re.sub(r"\d+", "0", text), (text, {}, {}))
                names[name], who[contender] = None, None
        difference = case.get("torchjd_gramian_difference")
        if difference is not None and difference > DIFFERENT:
            differing.append(f"{name}: TorchJD's Gramian differs from the exact one by {difference:.2g} (relative).")
    refused = [f"{', '.join(n)}: {', '.join(who)} refused. `{text}`" for text, n, who in reasons.values()]
    return listed([*refused, *differing])
