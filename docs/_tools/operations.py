"""The operations that the rule table names, by family: a family is a file of `gramjd.engine.rules`."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module

from gramjd.engine import rules

WIDTH = 110


def own() -> set[str]:
    """The entries of the library's own: not those that a program has registered."""
    return set(rules.TABLE) - set(rules.CUSTOM)


def operation(name: str) -> str:
    """What a node is called without the number of its overload: `AddBackward0` is `Add`."""
    return re.sub(r"Backward\d*$", "", name.rpartition("::")[2])


def families() -> Iterator[tuple[str, list[str]]]:
    """Docstring and operations of each file; last what no file claims."""
    left = own()
    for module in sorted(pkgutil.iter_modules(rules.__path__), key=lambda found: found.name):
        loaded = import_module(f"{rules.__name__}.{module.name}")
        mine = left & set(getattr(loaded, "RULES", ()))
        left -= mine
        if mine:
            yield inspect.cleandoc(loaded.__doc__ or ""), sorted({operation(name) for name in mine}, key=str.lower)
    if left:
        yield "Others.", sorted({operation(name) for name in left}, key=str.lower)


def listing() -> str:
    """One section per family: the first paragraph of its file, whose first words are the title, and the names."""
    parts = []
    for text, names in families():
        title, *words = re.split(r"[:;.] +", " ".join(text.partition("\n\n")[0].split()), maxsplit=1)
        said = [f"{word[:1].upper()}{word[1:]}" for word in words]
        code = ", ".join(f"`{name}`" for name in names)
        parts.append("\n\n".join([f"## {title.rstrip('.')}", *said, _wrapped(code)]))
    return "\n\n".join(parts)


def count() -> str:
    """The sentence with the numbers."""
    found = list(families())
    return f"{sum(len(names) for _, names in found)} operations in {len(found)} families have a rule."


def _wrapped(text: str) -> str:
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + len(word) >= WIDTH:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "\n".join([*lines, line])
