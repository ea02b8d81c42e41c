"""`gramjd check`: look for counterexamples to the properties of an aggregator, or of all that come with the library."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gramjd.errors import InputError
from gramjd.locate import locate

_PATIENCE = 2.0  # seconds without a sign of life


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "target", nargs="?", metavar="MODULE:NAME", help="a class, an instance, a function or a factory"
    )
    parser.add_argument("--table", action="store_true", help="every aggregator of gramjd.aggregation instead of one")
    parser.add_argument("--property", action="append", metavar="NAME", help="only this one; may be given several times")
    parser.add_argument("--examples", type=int, default=100, help="matrices tried per property (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the search (default: 0)")
    parser.add_argument("--rows", type=_range, default=(1, 5), metavar="N[-N]", help="numbers of losses (default: 1-5)")
    parser.add_argument("--takes", choices=("gramian", "jacobian"), help="what a callable is a function of")
    parser.add_argument("--json", metavar="PATH", help="write the results there as JSON; - for the screen")
    parser.add_argument("--verbose", action="store_true", help="with --table: the counterexample behind each no")


def run(args: argparse.Namespace) -> int:
    """0 if all properties hold (with --table: if all is as stated), 1 if not, 2 if there was nothing to check."""
    from gramjd.testing.home import no_folder_left  # needs hypothesis, an extra

    try:
        with no_folder_left():
            result, text = _table(args) if args.table else _one(args)
    except InputError as error:
        print(f"gramjd check: {error}", file=sys.stderr)
        return 2
    if args.json:
        plain = json.dumps(result.to_dict(), indent=2)
        if args.json == "-":
            text = plain
        else:
            Path(args.json).write_text(plain + "\n")
    print(text)
    return 1 if (result.differences() if args.table else not result) else 0


def _table(args: argparse.Namespace) -> tuple[Any, str]:
    from gramjd.testing.properties import PROPERTIES
    from gramjd.testing.table import ENTRIES, property_table

    if args.target:
        raise InputError(f"--table checks the library's own aggregators; leave out {args.target!r} or --table")
    properties = args.property or list(PROPERTIES)
    tick = _progress(len(ENTRIES))
    table = property_table(properties=properties, examples=args.examples, seed=args.seed, progress=tick)
    return table, f"{table}\n\n{table.counterexamples()}".rstrip() if args.verbose else str(table)


def _one(args: argparse.Namespace) -> tuple[Any, str]:
    from gramjd.testing.properties import PROPERTIES
    from gramjd.testing.report import check_aggregator

    if not args.target:
        raise InputError("say what to check, as MODULE:NAME, or --table for the library's own aggregators")
    options = {"examples": args.examples, "seed": args.seed, "rows": args.rows, "takes": args.takes}
    tick = _progress(len(args.property or PROPERTIES))
    report = check_aggregator(load(args.target), args.property, progress=tick, **options)
    return report, str(report)


def load(target: str) -> Any:
    """The aggregator that `MODULE:NAME` stands for.

    A class is called without arguments, and so is a function that takes none; everything else is used as it is.

    Raises:
        InputError: there is no such module or name, or the class needs arguments.

    >>> load("gramjd.aggregation:UPGrad")
    UPGrad()
    """
    found = locate(target)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return found
    needed = [
        p.name for p in _parameters(found) if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not needed:
        return found()
    if inspect.isclass(found):
        name = found.__name__
        raise InputError(
            f"{name} needs {', '.join(needed)}: write `aggregator = {name}(...)` into a module and name that instance"
        )
    return found


def _parameters(found: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(found).parameters.values())
    except ValueError:  # classes written in C may not say
        return []


def _progress(total: int) -> Callable[[str], None]:
    """Says on stderr, at most every two seconds, how far it is."""
    state = {"done": -1, "said": time.monotonic()}

    def tick(name: str) -> None:
        state["done"] += 1
        if time.monotonic() - state["said"] > _PATIENCE:
            state["said"] = time.monotonic()
            print(f"{int(state['done'])} of {total} done, now {name}", file=sys.stderr, flush=True)

    return tick


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isdigit() and (high or low).isdigit() and 1 <= int(low) <= int(high or low)):
        raise argparse.ArgumentTypeError(f"got {text}, expected a number or two with a hyphen between, such as 1-5")
    return int(low), int(high or low)
