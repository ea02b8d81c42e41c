"""Docstrings in Markdown, with their words as they are.

The docstrings of this library are written for `help()`. Three things in them mean something else in Markdown, and are
written in its way when the site is built: doctests (`>>>` would quote), tables ruled with `=`, and a sentence after the
last entry of `Raises:`, which is part of no entry.
"""

from __future__ import annotations

import re

_RULE = re.compile(r"^(=+)(?: +=+)+$")
_ENTRY = re.compile(r"^    [\w, ]+: ")


def fenced(lines: list[str]) -> list[str]:
    """Every run of doctest lines as a block of code; it ends at an empty line, as for doctest."""
    out: list[str] = []
    inside = False
    for line in lines:
        if not inside and line.lstrip().startswith(">>> "):
            indent = line[: len(line) - len(line.lstrip())]
            out += [f"{indent}```pycon"]
            inside = True
        if inside and not line.strip():
            out += [f"{indent}```"]
            inside = False
        out.append(line)
    return [*out, f"{indent}```"] if inside else out


def tabled(lines: list[str]) -> list[str]:
    """Every table of two columns that is ruled with `=` as one of Markdown, with an empty head."""
    out: list[str] = []
    at: int | None = None
    for line in lines:
        rule = _RULE.match(line)
        if rule and at is None:
            at = len(rule[1])
            out += ["| | |", "|---|---|"]
        elif rule:
            at = None
        elif at is not None:
            out.append(f"| {line[:at].strip()} | {line[at:].strip()} |")
        else:
            out.append(line)
    return out


def freed(lines: list[str]) -> list[str]:
    """What follows the entries of `Raises:` without being one as a paragraph of its own."""
    out: list[str] = []
    state = "outside"
    for line in lines:
        if line == "Raises:":
            state = "entries"
        elif not line.startswith(" "):
            state = "outside"
        elif state == "entries" and re.match(r"^    \S", line) and not _ENTRY.match(line):
            state = "remark"
            out.append("")
        out.append(line.strip() if state == "remark" else line)
    return out


def marked_up(text: str) -> str:
    """All three."""
    return "\n".join(fenced(tabled(freed(text.splitlines()))))
