"""The README's tables and the figures in docs/figures, made from the results in profiling/results.

    python -m gramjd.profiling.tables           # rewrite the tables in README.md, redraw the figures
    python -m gramjd.profiling.tables --check   # exit 1 if they do not match the results

A table stands between `<!-- table: NAME -->` and `<!-- end table -->`; `TABLES` says what makes it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjd.profiling import readme_figures

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("profiling/results")
MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end table -->)", re.DOTALL)
DIFFERENT = 1e-3  # relative distance of two Gramians; rounding of float32 stays far below


def step_time(results: Mapping[str, Any]) -> str:
    """Time of a step over the plain step's: median, and in brackets the quartiles."""
    names = _contenders(results)
    rows = [["case", "m", "plain step, ms", *names]]
    for case in results["cases"].values():
        outcome = case["contenders"]
        plain = f"{outcome['plain']['milliseconds']['median']:.1f}"
        rows.append([case["title"], str(case["m"]), plain, *(_ratio(outcome[name]) for name in names)])
    return f"{markdown(rows)}\n\n{_placed(results)}{_notes(results)}"


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
    """Milliseconds for UPGrad's weights from a Gramian, per family of gradients and m, beside quadprog's."""
    methods = list(results["results"][0]["methods"])
    rows = [["gradients", "m", *(f"{method}, ms" for method in methods), "quadprog over exact"]]
    for result in results["results"]:
        cells = [_short(result["methods"][method]["ms"]) for method in methods]
        rows.append([result["family"], str(result["m"]), *cells, _short(result["speed_up"])])
    machine = results["machine"]
    placed = f"{machine['date']}; {machine['cpu']}, threads: {machine['threads']}; torch {machine['torch']}"
    return f"{markdown(rows)}\n\n{placed}; load of the machine meanwhile: {machine['load']:.1f}."


TABLES: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "step-time": ("step_cpu.json", step_time),
    "step-time-kept": ("step_cpu_kept.json", step_time),
    "step-memory": ("step_cpu.json", step_memory),
    "weights": ("weights.json", weights),
}


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first row is its head, the first column stands to the left.

    >>> print(markdown([["case", "m"], ["mlp", "32"]]))
    | case | m |
    |---|---:|
    | mlp | 32 |
    """
    rule = "|---" + "|---:" * (len(rows[0]) - 1) + "|"
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, rule, *body])


def render(text: str, root: Path = ROOT) -> str:
    """`text` with each marked table made anew from the results under `root`.

    Raises:
        KeyError: a marker names no table.
    """

    def fill(match: re.Match[str]) -> str:
        file, make = TABLES[match["name"]]
        path = root / RESULTS / file
        table = make(json.loads(path.read_text())) if path.is_file() else f"(no {RESULTS / file})"
        return f"{match[1]}{table}\n{match[3]}"

    return MARKED.sub(fill, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the tables, or with `--check` say whether they are up to date."""
    parser = argparse.ArgumentParser(prog="python -m gramjd.profiling.tables", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if anything is out of date")
    args = parser.parse_args(argv)
    readme = ROOT / "README.md"
    if not readme.is_file():
        print("README.md is not here: run this from a checkout of the repository", file=sys.stderr)
        return 1
    before = readme.read_text()
    after = render(before)
    stale = readme_figures.outdated(ROOT, RESULTS)
    if args.check and before != after:
        print("README.md does not match profiling/results: run python -m gramjd.profiling.tables", file=sys.stderr)
        return 1
    if args.check and stale:
        print(f"docs/figures do not match profiling/results ({', '.join(stale)}): run the same", file=sys.stderr)
        return 1
    if before != after:
        readme.write_text(after)
    if stale:
        readme_figures.write(ROOT, RESULTS)
    return 0


def _contenders(results: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys(name for case in results["cases"].values() for name in case["contenders"])
    return [name for name in names if name != "plain"]


def _ratio(outcome: Mapping[str, Any]) -> str:
    if "refused" in outcome:
        return "refused"
    ratio = outcome["ratio"]
    return f"{_short(ratio['median'])} ({_short(ratio['low'])} to {_short(ratio['high'])})"


def _short(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.0f}"


def _placed(results: Mapping[str, Any]) -> str:
    facts = results["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    device = facts.get("gpu", f"{facts['cpu']}, {facts['cores']} cores")
    return f"{facts['date']}; {device}, {facts['system']}; {versions}; allocator: {facts['allocator']}."


def _notes(results: Mapping[str, Any]) -> str:
    """Which models TorchJD refused and why; where its Gramian is not ours."""
    lines = []
    for name, case in results["cases"].items():
        for contender, outcome in case["contenders"].items():
            if "refused" in outcome:
                lines.append(f"- {name}: {contender} refused. `{outcome['refused']}`")
        difference = case.get("torchjd_gramian_difference")
        if difference is not None and difference > DIFFERENT:
            lines.append(f"- {name}: TorchJD's Gramian differs from the exact one by {difference:.2g} (relative).")
    return "".join(f"\n{line}" for line in ["", *lines]) if lines else ""


if __name__ == "__main__":
    raise SystemExit(main())
