"""The command: says whether all is well, runs the sections one after the other, prints a short table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from gramjd.text_table import aligned


class Section(NamedTuple):
    """A part of the time that is left when it begins; what it leaves goes to those after it."""

    module: str
    share: float
    title: str


SECTIONS = {
    "correctness": Section("correctness", 0.30, "right on this device"),
    "kernels": Section("kernels", 0.35, "ceilings and kernels"),
    "steps": Section("steps", 0.75, "steps over plain"),
    "weights": Section("weights", 0.95, "weights against eigh"),
}
OVER_PLAIN = ("time", "captured", "memory")  # of a step, over those of the plain one
GRACE = 20.0  # seconds that a section may overrun its box before it is ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run all sections, or one of them in this process; 1 if a result was wrong or a section failed."""
    parser = argparse.ArgumentParser(prog="python -m gramjd.profiling.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (default: 9)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of: %(default)s")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--alone", choices=SECTIONS, help="this section only, in this process")
    args = parser.parse_args(argv)
    end = time.monotonic() + 60 * args.minutes
    names = args.sections.split(",")
    if not set(names) <= set(SECTIONS):
        parser.error(f"got sections {args.sections}; expected some of {', '.join(SECTIONS)}")
    if args.alone:
        return alone(args.alone, args.out, 60 * args.minutes, args.dry)
    facts = greeting(args.dry)
    print(json.dumps(facts), flush=True)
    if facts["problem"]:
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "environment.json").write_text(json.dumps(facts, indent=1) + "\n")
    ended = {name: _spawn(name, args, end - time.monotonic()) for name in names}
    print(table(args.out, ended))
    return int(any(state != "complete" and state != "cut" for state in ended.values()))


def greeting(dry: bool) -> dict[str, Any]:
    """Device, versions, and what stands in the way, if anything does."""
    try:
        import gramjd.kernels.dispatch as dispatch
        from gramjd.profiling.environment import describe
        from gramjd.profiling.gpu.correctness import checkout

        torch = import_module("torch")
        device = "cpu" if dry else "cuda"
        if not dry and not torch.cuda.is_available():
            return {"problem": "there is no CUDA device here; --dry runs on a CPU"}
        packages = ("torch", "triton", "gramjd", "transformers", "timm", "hypothesis", "torchjd", "pytest")
        facts = describe(packages, device)
        facts["triton"] = dispatch._without_triton() or "usable"
        facts["tests"] = "found" if (checkout() / "tests/zoo").is_dir() else "not found: run this in a checkout"
        return {"problem": None, **facts}
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {error}"}


def alone(name: str, out: Path, seconds: float, dry: bool) -> int:
    """Run a section in this process."""
    from gramjd.profiling.gpu.box import Box

    box = Box(out / f"{name}.json", seconds, dry=dry)
    run: Callable[[Box], None] = import_module(f"gramjd.profiling.gpu.{SECTIONS[name].module}").run
    run(box)
    box.note(complete=True, seconds=round(seconds - box.left(), 1))
    return 0


def _spawn(name: str, args: argparse.Namespace, left: float) -> str:
    """Run a section in a process of its own: a fault of the device ends that process only. Returns how it ended."""
    seconds = max(1.0, SECTIONS[name].share * left)
    print(f"\n== {SECTIONS[name].title}: up to {seconds:.0f} s", flush=True)
    command = [sys.executable, "-m", "gramjd.profiling.gpu", "--alone", name, "--out", str(args.out)]
    command += ["--minutes", str(seconds / 60), *(["--dry"] if args.dry else [])]
    try:
        status = subprocess.run(command, timeout=seconds + GRACE).returncode
    except subprocess.TimeoutExpired:
        return "cut"
    return "complete" if status == 0 else f"ended with status {status}"


def table(out: Path, ended: Mapping[str, str]) -> str:
    """How each section ended and what failed, the kernels worth taking, and the steps, from the sections' files."""
    rows, failures = [["section", "how it ended", "rows", "failed", "skipped"]], []
    for name, state in ended.items():
        found = _read(out / f"{name}.json")
        failed = [row for row in found["rows"] if row.get("failed")]
        rows.append([name, state, *(str(len(part)) for part in (found["rows"], failed, found["skipped"]))])
        failures += [f"failed: {name}: {_named(row)}: {row['failed'][:140]}" for row in failed]
    parts = ["\n".join([aligned(rows, "llr"), *failures])]
    steps = [_step(row) for row in _read(out / "steps.json")["rows"] if "time_over_plain" in row]
    if steps:
        head = ["model", "m", "contender", "ms", "time", "captured", "memory", "launches"]
        parts.append(aligned([head, *steps], "lrlr"))
    if "kernels" in ended and "auto" in (kernels := _read(out / "kernels.json")):
        parts += _kernels(kernels["auto"])
    return "\n" + "\n\n".join(parts)


def _kernels(auto: Mapping[str, Any]) -> list[str]:
    """What each kernel reached, and the list per architecture."""
    keys = {"cases": ".0f", "speed_up": ".2f", "least": ".2f", "of_bytes": ".0%", "of_flops": ".0%"}
    rows = [["kernel", "cases", "times torch", "least", "of bytes/s", "of FLOP/s"]]
    for name, found in auto["measured"].items():
        rows.append([name, *(f"{found[key]:{how}}" if key in found else "" for key, how in keys.items())])
    lists = [f"kernels for auto on {where}: {', '.join(names) or 'none'}" for where, names in auto["kernels"].items()]
    return [aligned(rows, "lr"), *(lists or ["kernels for auto: none, as this is no GPU"])]


def _read(path: Path) -> dict[str, Any]:
    empty: dict[str, Any] = {"rows": [], "skipped": []}
    return empty | (json.loads(path.read_text()) if path.is_file() else {})


def _named(row: Mapping[str, Any]) -> str:
    keys = ("check", "name", "operation", "shape", "dtype", "model", "gradients", "solver", "m", "contender")
    return " ".join(str(row[key]) for key in keys if key in row)


def _step(row: Mapping[str, Any]) -> list[str]:
    over = [f"{row[f'{key}_over_plain']:.2f}" if f"{key}_over_plain" in row else "" for key in OVER_PLAIN]
    return [row["model"], str(row["m"]), row["contender"], f"{row['ms']:.2f}", *over, str(row["launches"])]


if __name__ == "__main__":
    raise SystemExit(main())
