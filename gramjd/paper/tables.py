"""The tables of docs/paper.md, made from the results in profiling/results/paper.

    python -m gramjd.paper.tables           # rewrite the tables
    python -m gramjd.paper.tables --check   # exit 1 if they do not match the results

A table stands between `<!-- table: NAME -->` and `<!-- end table -->`; `TABLES` says what makes it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjd.paper import convergence, cost, iwrm_report
from gramjd.paper.data.sets import DATA
from gramjd.paper.journal import Journal
from gramjd.text_table import filled, markdown

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path("profiling/results/paper")
PAGE = Path("docs/paper.md")


def trajectories(path: Path) -> str:
    """Per aggregator: stalled starts on EWQ; least gain and largest increase on CQF."""
    results = json.loads(path.read_text())
    rows = [["aggregator", "EWQ: stalled starts", "CQF: least gain", "CQF: largest increase in a step"]]
    for name, ewq in results["toys"]["ewq"].items():
        cqf = results["toys"]["cqf"][name]
        stalls = f"{len(ewq['stalled'])} of {len(ewq['ends'])}"
        rows.append([name, stalls, f"{cqf['least_gain']:.1e}", f"{cqf['largest_increase']:.1e}"])
    return f"{markdown(rows)}\n\n{_placed([results['environment']])}"


def properties(path: Path) -> str:
    """Table 1 as found; a word that the paper contradicts is in bold."""
    results = json.loads(path.read_text())
    found = results["aggregators"]
    names = list(next(iter(found.values()))["stated"])
    rows = [["aggregator", *(name.replace("_", " ") for name in names)]]
    for label, entry in found.items():
        words = ["yes" if entry[name]["holds"] else "no" for name in names]
        agree = [entry[name]["holds"] == entry["stated"][name] for name in names]
        rows.append([label, *(w if same else f"**{w}**" for w, same in zip(words, agree, strict=True))])
    summary = (
        f"{results['examples']} matrices per yes; {len(results['differences'])} differences from the paper's table."
    )
    return f"{markdown(rows)}\n\n{summary} {_placed([results['environment']])}"


def theorem(path: Path) -> str:
    """Distance to the Pareto set after all steps, and the weights on the way; the worst over the seeds."""
    results = json.loads(path.read_text())
    made = f"{results['steps']} steps, {results['seeds']} drawn problems per size."
    table = markdown([convergence.HEADER, *convergence.rows(results["runs"])])
    return f"{table}\n\n{made} {_placed([results['environment']])}"


def iwrm(optimizer: str, batches: Sequence[int] | None = None) -> Callable[[Path], str]:
    """The searches with one optimiser, at some batch sizes or at all."""

    def make(path: Path) -> str:
        journal = Journal(path)
        entries = [e for e in iwrm_report.summarise(journal.runs()) if e["optimizer"] == optimizer]
        entries = [e for e in entries if batches is None or e["batch"] in batches]
        rows = [iwrm_report.cells(e) for e in sorted(entries, key=lambda e: e["batch"])]
        runs, seconds = sum(e["runs"] for e in entries), sum(e["seconds"] for e in entries)
        made = f"{runs} runs, {seconds / 60:.0f} minutes in all, on a machine that did other work meanwhile."
        epochs = ", ".join(sorted({f"{DATA[e['data']].title}: {e['epochs']} epochs" for e in entries}))
        return f"{markdown([iwrm_report.HEADER, *rows])}\n\n{epochs}. {made} {_placed(journal.environments())}"

    return make


def costs(field: str) -> Callable[[Path], str]:
    """The costs per set at batch 32 (`sets`), or over batch sizes (`sizes`)."""

    def make(path: Path) -> str:
        results = json.loads(path.read_text())
        rows = []
        for key, found in results[field].items():
            head, *lines = cost.rows(found)
            title = DATA[key].title if field == "sets" else key
            rows += [[title, *line] for line in lines]
        head = ["set" if field == "sets" else "batch", *head]
        return f"{markdown([head, *rows])}\n\n{_placed([results['environment']])}"

    return make


TABLES: dict[str, tuple[str, Callable[[Path], str]]] = {
    "trajectories": ("trajectories.json", trajectories),
    "properties": ("properties.json", properties),
    "convergence": ("convergence.json", theorem),
    "iwrm": ("iwrm.jsonl", iwrm("sgd", [32])),
    "iwrm-batches": ("iwrm.jsonl", iwrm("sgd", [16, 128, 512])),
    "iwrm-adam": ("iwrm.jsonl", iwrm("adam")),
    "cost-sets": ("cost.json", costs("sets")),
    "cost-sizes": ("cost.json", costs("sizes")),
}


def render(text: str, root: Path = ROOT) -> str:
    """`text` with each marked table made anew from the results under `root`.

    Raises:
        KeyError: a marker names no table.
    """

    return filled(text, root, RESULTS, TABLES, lambda path: path)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Rewrite the tables, or with `--check` say whether they are up to date."""
    parser = argparse.ArgumentParser(prog="python -m gramjd.paper.tables", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is out of date")
    args = parser.parse_args(argv)
    page = root / PAGE
    if not page.is_file():
        print(f"{PAGE} is not here: run this from a checkout of the repository", file=sys.stderr)
        return 1
    before = page.read_text()
    after = render(before, root)
    if args.check and before != after:
        print(f"{PAGE} does not match {RESULTS}: run python -m gramjd.paper.tables", file=sys.stderr)
        return 1
    if before != after:
        page.write_text(after)
    return 0


def _placed(environments: Sequence[Mapping[str, Any]]) -> str:
    """Date, machine and versions of each environment."""
    lines = []
    for facts in environments:
        versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        device = facts.get("gpu", f"{facts['cpu']}, {facts['cores']} cores, threads: {facts['threads']}")
        lines.append(f"{facts['date']}; {device}, {facts['system']}; {versions}.")
    return " ".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
