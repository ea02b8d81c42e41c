"""The tables of docs/paper.md, made from the results in profiling/results/paper.

    python -m gramjd.experiments.tables           # rewrite the tables
    python -m gramjd.experiments.tables --check   # exit 1 if they do not match the results

A table stands between `<!-- table: NAME -->` and `<!-- end table -->`; `TABLES` says what makes it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gramjd.experiments import convergence, cost, iwrm_report, objections, tasks_report
from gramjd.experiments.data.sets import DATA
from gramjd.experiments.results import Journal
from gramjd.text_table import filled, markdown

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path("profiling/results/paper")
PAGE = Path("docs/paper.md")

Results = Mapping[str, Any]


def trajectories(results: Results) -> str:
    """Per aggregator: stalled starts on EWQ; least gain and largest increase on CQF."""
    rows = [["aggregator", "EWQ: stalled starts", "CQF: least gain", "CQF: largest increase in a step"]]
    for name, ewq in results["toys"]["ewq"].items():
        cqf = results["toys"]["cqf"][name]
        stalls = f"{len(ewq['stalled'])} of {len(ewq['ends'])}"
        rows.append([name, stalls, f"{cqf['least_gain']:.1e}", f"{cqf['largest_increase']:.1e}"])
    return noted(rows, "", [results["environment"]])


def properties(results: Results) -> str:
    """Table 1 as found; a word that the paper contradicts is in bold."""
    found = results["aggregators"]
    names = list(next(iter(found.values()))["stated"])
    rows = [["aggregator", *(name.replace("_", " ") for name in names)]]
    for label, entry in found.items():
        words = ["yes" if entry[name]["holds"] else "no" for name in names]
        agree = [entry[name]["holds"] == entry["stated"][name] for name in names]
        rows.append([label, *(w if same else f"**{w}**" for w, same in zip(words, agree, strict=True))])
    note = f"{results['examples']} matrices per yes; {len(results['differences'])} differences from the paper's table. "
    return noted(rows, note, [results["environment"]])


def theorem(results: Results) -> str:
    """Distance to the Pareto set after all steps, and the weights on the way; the worst over the seeds."""
    note = f"{results['steps']} steps, {results['seeds']} drawn problems per size. "
    return noted(convergence.rows(results["runs"]), note, [results["environment"]])


def iwrm(journal: Journal, optimizer: str, batches: Collection[int] | None = None) -> str:
    """The searches with one optimiser, at some batch sizes or at all."""
    found = iwrm_report.summarise(journal.runs(), journal.costs)
    entries = [e for e in found if e["optimizer"] == optimizer and (batches is None or e["batch"] in batches)]
    rows = [iwrm_report.HEADER, *(iwrm_report.cells(e) for e in sorted(entries, key=lambda e: e["batch"]))]
    if all(e["over_sgd"] is None for e in entries):  # no column of which nothing was measured
        rows = [row[:-2] for row in rows]
    runs, seconds = sum(e["runs"] for e in entries), sum(e["seconds"] for e in entries)
    made = f"{runs} runs, {seconds / 60:.0f} minutes in all, on a machine that did other work meanwhile."
    epochs = ", ".join(sorted({f"{DATA[e['data']].title}: {e['epochs']} epochs" for e in entries}))
    return noted(rows, f"{epochs}. {made} ", journal.environments())


def tasks(journal: Journal, form: str) -> str:
    """Two overlaid digits in one form, a line per method."""
    entries = [e for e in tasks_report.summarise(journal)["entries"] if e["form"] == form]
    runs, seconds = sum(e["runs"] for e in entries), sum(e["seconds"] for e in entries)
    rows = [tasks_report.HEADER, *map(tasks_report.cells, entries)]
    note = f"{runs} runs, {seconds / 60:.0f} minutes of CPU time, on a machine that did other work meanwhile. "
    return noted(rows, note, journal.environments())


def objections_of(results: Results) -> str:
    """What UPGrad's variants and Mean meet in training."""
    note = f"{DATA[results['data']].title}, rate {results['rate']:g}, batch 32, {results['seeds']} seeds. "
    return noted([objections.HEADER, *objections.rows(results["runs"])], note, [results["environment"]])


def cost_of_sets(results: Results) -> str:
    """Per set and aggregator at batch 32, beside the paper's Table 7."""
    rows = []
    for key, found in results["sets"].items():
        head, *lines = cost.beside_the_paper(key, found)
        rows += [[DATA[key].title, *line] for line in lines]
    return noted([["set", *head], *rows], "", [results["environment"]])


def cost_of_sizes(results: Results) -> str:
    """Over batch sizes."""
    rows = []
    for key, found in results["sizes"].items():
        head, *lines = cost.rows(found)
        rows += [[key, *line] for line in lines]
    return noted([["batch", *head], *rows], "", [results["environment"]])


TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "trajectories": ("trajectories.json", trajectories),
    "properties": ("properties.json", properties),
    "convergence": ("convergence.json", theorem),
    "iwrm": ("iwrm.jsonl", partial(iwrm, optimizer="sgd", batches=[32])),
    "iwrm-batches": ("iwrm.jsonl", partial(iwrm, optimizer="sgd", batches=[16, 128, 512])),
    "iwrm-mnist": ("iwrm-mnist.jsonl", partial(iwrm, optimizer="sgd", batches=[32])),
    "iwrm-mnist-batches": ("iwrm-mnist.jsonl", partial(iwrm, optimizer="sgd", batches=[128, 512])),
    "iwrm-fashion": ("iwrm-fashion.jsonl", partial(iwrm, optimizer="sgd", batches=[32])),
    "iwrm-fashion-batches": ("iwrm-fashion.jsonl", partial(iwrm, optimizer="sgd", batches=[128, 512])),
    "iwrm-digits": ("iwrm-digits.jsonl", partial(iwrm, optimizer="sgd")),
    "iwrm-adam": ("iwrm.jsonl", partial(iwrm, optimizer="adam")),
    "tasks-equal": ("tasks.jsonl", partial(tasks, form="equal")),
    "tasks-unequal": ("tasks.jsonl", partial(tasks, form="unequal")),
    "objections": ("objections-digits.json", objections_of),
    "objections-mnist": ("objections-mnist.json", objections_of),
    "cost-sets": ("cost.json", cost_of_sets),
    "cost-sizes": ("cost.json", cost_of_sizes),
}


def render(text: str, root: Path = ROOT) -> str:
    """`text` with each marked table made anew from the results under `root`.

    Raises:
        KeyError: a marker names no table.
    """
    return filled(text, root, RESULTS, TABLES, _read)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Rewrite the tables, or with `--check` say whether they are up to date."""
    parser = argparse.ArgumentParser(prog="python -m gramjd.experiments.tables", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is out of date")
    args = parser.parse_args(argv)
    page = root / PAGE
    if not page.is_file():
        print(f"{PAGE} is not here: run this from a checkout of the repository", file=sys.stderr)
        return 1
    before = page.read_text()
    after = render(before, root)
    if args.check and before != after:
        print(f"{PAGE} does not match {RESULTS}: run python -m gramjd.experiments.tables", file=sys.stderr)
        return 1
    if before != after:
        page.write_text(after)
    return 0


def _read(path: Path) -> Results | Journal:
    return Journal(path) if path.suffix == ".jsonl" else json.loads(path.read_text())


def noted(rows: Sequence[Sequence[str]], note: str, environments: Sequence[Results]) -> str:
    """A table and below it a note, then date, machine and versions of each environment."""
    lines = []
    for facts in environments:
        versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        device = facts.get("gpu", f"{facts['cpu']}, {facts['cores']} cores, threads: {facts['threads']}")
        lines.append(f"{facts['date']}; {device}, {facts['system']}; {versions}.")
    return f"{markdown(rows)}\n\n{note}{' '.join(lines)}"


if __name__ == "__main__":
    raise SystemExit(main())
