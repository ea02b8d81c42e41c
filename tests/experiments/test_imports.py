"""The experiments stand on top: they use what users use, and only the command line uses them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "gramjd" / "experiments"
IMPORTED = re.compile(r"^\s*(?:from|import) (gramjd(?:\.\w+)*)(?: import (.*))?", re.MULTILINE)
ALLOWED = {
    "gramjd",
    "aggregation",
    "profiling",
    "scalarization",
    "testing",
    "experiments",
    "optim",
    "arguments",
    "errors",
    "extras",
    "text_table",
}


def imports(file):
    """What a file imports of gramjd, to the second level: `gramjd`, `aggregation`."""
    for module, names in IMPORTED.findall(file.read_text()):
        first = module.split(".")[1:2]
        yield from first or (names.split(", ") if names else ["gramjd"])


def test_only_the_command_line_uses_the_experiments():
    others = [f for folder in ("gramjd", "kernels", "profiling") for f in (ROOT / folder).rglob("*.py")]
    benchmarks = ROOT / "profiling" / "bench"  # in a checkout only
    inside = [f for f in others if FOLDER not in f.parents and benchmarks not in f.parents]
    assert [f.name for f in inside if "gramjd.experiments" in f.read_text()] == ["cli.py"]


def test_the_experiments_use_nothing_internal():
    used = {name for file in FOLDER.rglob("*.py") for name in imports(file)}
    assert {"aggregation", "profiling", "arguments"} <= used
    assert used <= ALLOWED
