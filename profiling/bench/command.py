"""`gramjd bench`: the benchmark of a step, refused while the tests of what it measures fail; two results compared."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gramjd.errors import GramjdError, InputError
from gramjd.text_table import aligned

ROOT = Path(__file__).resolve().parent.parent.parent
# What a step runs through: the walk against the oracle, the update, the weights, the kernels.
TESTS = ("tests/test_backward.py", "tests/test_zoo.py", "tests/aggregation/test_dual_cone.py", "tests/kernels")


class RedTestsError(GramjdError, RuntimeError):
    """The tests of what is to be measured fail, so that no figure about it would mean anything."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--cases", default="all", help="all, families or cases, by commas (default: all)")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds per case (default: 25)")
    parser.add_argument("--seconds", type=float, default=40.0, help="time per case, at least 5 rounds (default: 40)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--contenders", help='by commas, such as "plain,gramjd UPGrad" (default: all)')
    parser.add_argument("--backend", default="auto", help="of gramjd's kernels: auto, torch, onednn or triton")
    parser.add_argument("--keep-freed", action="store_true", help="restart with glibc told to keep freed blocks")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here")
    parser.add_argument("--no-tests", action="store_true", help="do not run the tests first; the result says so")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="compare two results, run nothing")


def run(args: argparse.Namespace) -> int:
    """Compare, or test and measure."""
    if args.compare:
        print(compare(*(_read(path) for path in args.compare)))
        return 0
    from gramjd.kernels.dispatch import use_backend
    from gramjd.profiling.bench import step
    from gramjd.profiling.bench.cases import select
    from gramjd.profiling.environment import restart_keeping_freed

    names = select(args.cases)
    contenders = step.select(args.contenders)
    with use_backend(args.backend):
        if args.keep_freed:
            restart_keeping_freed()
        tests = "not run" if args.no_tests else run_tests()
        options = {"device": args.device, "rounds": args.rounds, "seconds": args.seconds, "path": args.json}
        step.run(names, **options, tests=tests, contenders=contenders, backend=args.backend)
    return 0


def run_tests(root: Path = ROOT, tests: tuple[str, ...] = TESTS) -> str:
    """Run the tests of what is measured; returns their last line, such as "412 passed in 20 s".

    Raises:
        InputError: there are no tests here.
        RedTestsError: some fail.
    """
    missing = [name for name in tests if not (root / name).exists()]
    if missing:
        raise InputError(f"{missing[0]} is not here: run this in a checkout of the repository, or pass --no-tests")
    print("running the tests of what is measured ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tests]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    if done.returncode:
        raise RedTestsError(f"no benchmark while its tests fail: {lines[-1]}")
    return lines[-1].strip("= ")


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """A line for each contender of each case that both results have: ratio to the plain step before and after.

    Called changed is what lies outside of each other's quartiles.
    """
    rows = []
    for name in a["cases"].keys() & b["cases"].keys():
        before, after = a["cases"][name]["contenders"], b["cases"][name]["contenders"]
        for contender in before:
            if contender == "plain" or contender not in after:
                continue
            old, new = before[contender], after[contender]
            if "refused" in old or "refused" in new:
                states = ["refused" if "refused" in result else "runs" for result in (old, new)]
                rows.append([name, contender, *states, "same" if states[0] == states[1] else "changed"])
            else:
                cells = [_ratio(result["ratio"]) for result in (old, new)]
                rows.append([name, contender, *cells, _verdict(old["ratio"], new["ratio"])])
    return aligned([["case", "contender", "before", "after", "verdict"], *sorted(rows)], "llrrl")


def _verdict(old: Mapping[str, float], new: Mapping[str, float]) -> str:
    if new["high"] < old["low"]:
        return f"faster: {new['median'] / old['median']:.2f}"
    if new["low"] > old["high"]:
        return f"slower: {new['median'] / old['median']:.2f}"
    return "within the spread"


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if "cases" not in found:
        raise InputError(f"{path} holds no result of gramjd bench: it has no cases")
    return found
