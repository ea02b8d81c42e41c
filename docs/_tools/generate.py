"""The parts of the pages that are made from the library itself.

    python docs/_tools/generate.py            # write them
    python docs/_tools/generate.py --check    # exit with 1 where a page is behind

A part stands between `<!-- generated: NAME -->` and `<!-- end generated -->`; NAME is a function of this file or of one
beside it. What a page says around it is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # run as a script or loaded from a test: the files beside this one

import families
import operations
import terminal

ROOT = Path(__file__).resolve().parents[2]
PARTS: dict[str, Callable[[], str]] = {
    "aggregators": families.table,
    "commands": terminal.commands,
    "count of operations": operations.count,
    "operations": operations.listing,
}
MARKED = re.compile(r"(<!-- generated: (?P<name>[^>]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def render(text: str) -> str:
    """The page with every marked part made anew."""
    return MARKED.sub(lambda found: f"{found[1]}{PARTS[found['name']]().strip()}\n{found[3]}", text)


def main(argv: list[str], root: Path = ROOT) -> int:
    """Write the pages, or with --check name those that are behind."""
    behind = []
    for page in sorted((root / "docs").rglob("*.md")):
        text = page.read_text()
        new = render(text)
        if new != text:
            behind.append(str(page.relative_to(root)))
            if "--check" not in argv:
                page.write_text(new)
    if behind and "--check" in argv:
        print(f"behind the library: {', '.join(behind)}: run python docs/_tools/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
