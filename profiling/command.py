"""`gramjd profile module:function`: time and memory of a step on one's own model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def size(text: str) -> int:
    """Bytes from text such as `8GiB`, `500MB` or `1e9`.

    >>> size("8GiB"), size("1.5MB"), size("64")
    (8589934592, 1500000, 64)
    """
    number, unit = text.strip().removesuffix("B"), ""
    for name in sorted(UNITS, key=len, reverse=True):
        if name and number.endswith(name):
            number, unit = number.removesuffix(name), name
            break
    try:
        found = int(float(number) * UNITS[unit])
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected bytes such as 8GiB or 500MB") from None
    if found <= 0:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected more than nothing")
    return found


def sweep(text: str) -> list[int]:
    """Numbers of losses from text such as `m=8,16,32`.

    >>> sweep("m=8,16")
    [8, 16]
    """
    try:
        found = [int(part) for part in text.removeprefix("m=").split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 2:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected numbers of losses from 2 on, such as m=8,16,32")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("target", help="module:function or file.py:function that returns (model, losses)")
    parser.add_argument("--m", type=int, help="number of losses, handed to the function as m")
    parser.add_argument("--sweep", type=sweep, default=[], metavar="m=8,16,..", help="several numbers of losses")
    parser.add_argument("--methods", help="by commas: plain, gramjd, gramjd reuse, jacobian, torchjd autogram, ..")
    parser.add_argument("--aggregator", default="UPGrad", help="class name of the aggregator (default: UPGrad)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds a method (default: 15)")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for a method's rounds (default: 10)")
    parser.add_argument("--memory-limit", type=size, metavar="BYTES", help="what a step may take, such as 2GiB")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write profile.json and the plots there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--layers", action="store_true", help="instead: the Gramian's time by parameter, with advice")
    parser.add_argument("--predict", action="store_true", help="instead: the peak of a step, before one is run")
    parser.add_argument("--largest-m", action="store_true", help="instead: the largest m that fits into --memory")
    parser.add_argument("--memory", type=size, metavar="BYTES", help="for --largest-m, such as 8GiB")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="instead: one step as a Chrome / Perfetto trace")
    parser.add_argument("--snapshot", type=Path, metavar="FILE", help="instead: a CUDA memory snapshot of one step")


def run(args: argparse.Namespace) -> int:
    """Do what was asked for and print it."""
    views = {
        "layers": _layers,
        "predict": _predict,
        "largest_m": _largest,
        "trace": _trace,
        "snapshot": _snapshot,
    }
    chosen = [view for name, view in views.items() if getattr(args, name)]
    for view in chosen or [_profile]:
        view(args)
    return 0


def _profile(args: argparse.Namespace) -> None:
    from gramjd.profiling import figures
    from gramjd.profiling.step import METHODS, profile_step

    if args.out is not None:
        figures.figure_of(1, 1)  # so that a missing package is known before minutes have gone by
    profile = profile_step(
        args.target,
        m=args.m,
        sweep=args.sweep,
        methods=[name.strip() for name in args.methods.split(",")] if args.methods else tuple(METHODS),
        aggregator=args.aggregator,
        rounds=args.rounds,
        seconds=args.seconds,
        memory_limit=args.memory_limit,
        notify=lambda line: print(line, file=sys.stderr, flush=True),
        path=args.out and args.out / "profile.json",
    )
    print(json.dumps(profile.to_dict()) if args.json else profile)
    if args.out is not None:
        paths = [args.out / "profile.json", *figures.save_all(profile, args.out)]
        print("written: " + ", ".join(map(str, paths)), file=sys.stderr)


def _layers(args: argparse.Namespace) -> None:
    from gramjd.profiling.layers import layers
    from gramjd.profiling.target import build

    found = layers(build(args.target, args.m))
    print(json.dumps(found.to_dict()) if args.json else found)


def _predict(args: argparse.Namespace) -> None:
    from gramjd.legend import legend
    from gramjd.profiling.predict import MEANINGS, predict_peak
    from gramjd.profiling.target import build

    for m in args.sweep or [args.m]:
        numbers = predict_peak(build(args.target, m)).to_dict()
        line = "  ".join(f"{name} {value / 1e6:.2f} MB" for name, value in numbers.items() if name != "m")
        print(json.dumps(numbers) if args.json else f"m = {numbers['m']}  {line}", flush=True)
    if not args.json:
        print(legend(MEANINGS))


def _largest(args: argparse.Namespace) -> None:
    from gramjd.errors import InputError
    from gramjd.profiling.predict import largest_m, predict_peak
    from gramjd.profiling.target import build

    if args.memory is None:
        raise InputError("--largest-m needs to know the memory: give it as --memory 8GiB")
    found = largest_m(lambda m: predict_peak(build(args.target, m)), args.memory)
    peak, held = (found.held + found.peak) / 1e6, found.held / 1e6
    text = (
        f"largest m: {found.m}; predicted peak {peak:.1f} MB, of which {held:.1f} are held before the step "
        "(parameters, buffers, batch; an optimiser's state comes on top)"
    )
    print(json.dumps(found.to_dict()) if args.json else text)


def _trace(args: argparse.Namespace) -> None:
    from gramjd.profiling.target import build
    from gramjd.profiling.trace import save_trace

    print(save_trace(build(args.target, args.m), args.trace, aggregator=args.aggregator))


def _snapshot(args: argparse.Namespace) -> None:
    from gramjd.profiling.target import build
    from gramjd.profiling.trace import save_snapshot

    print(save_snapshot(build(args.target, args.m), args.snapshot, aggregator=args.aggregator))
