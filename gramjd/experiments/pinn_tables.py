"""The table of docs/pinns.md, made from the runs in profiling/results/pinns.jsonl.

python -m gramjd.experiments.pinn_tables           # rewrite it
python -m gramjd.experiments.pinn_tables --check   # exit 1 if it does not match the runs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gramjd.experiments import pinn_report
from gramjd.experiments.results import Journal
from gramjd.experiments.tables import ROOT, noted
from gramjd.text_table import filled

RESULTS = Path("profiling/results")
PAGE = Path("docs/pinns.md")


def errors(journal: Journal) -> str:
    """Error of the solution per problem and method, over the seeds."""
    found = pinn_report.summarise(journal)
    seeds = max(len(entry["seeds"]) for entry in found["entries"])
    note = f"{seeds} seeds; {len(journal.runs())} runs, with those of the search. "
    return noted(pinn_report.rows(found["entries"]), note, journal.environments())


TABLES = {"pinns": ("pinns.jsonl", errors)}


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Rewrite the table, or with `--check` say whether it is up to date."""
    parser = argparse.ArgumentParser(
        prog="python -m gramjd.experiments.pinn_tables", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is out of date")
    args, page = parser.parse_args(argv), root / PAGE
    if not page.is_file():
        print(f"{PAGE} is not here: run this from a checkout of the repository", file=sys.stderr)
        return 1
    before = page.read_text()
    after = filled(before, root, RESULTS, TABLES, Journal)
    if args.check and before != after:
        print(f"{PAGE} does not match {RESULTS}: run python -m gramjd.experiments.pinn_tables", file=sys.stderr)
        return 1
    if before != after:
        page.write_text(after)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
