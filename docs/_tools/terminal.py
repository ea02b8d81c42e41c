"""Every command with its options, from the parser that prints `--help`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from gramjd.cli import build_parser


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers that have no commands below them."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for inner in action.choices.values():
            yield from leaves(inner)


def commands() -> str:
    """A section per command: what it does, and a table of its options."""
    return "\n\n".join(_section(parser) for parser in leaves(build_parser()))


def _section(parser: argparse.ArgumentParser) -> str:
    lines = [f"## {parser.prog}", "", f"{_sentence(parser.description or '')}", "", "| option | |", "|---|---|"]
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            lines.append(f"| {_written(action)} | {_help(action)} |")
    return "\n".join(lines) if len(lines) > 6 else "\n".join(lines[:3])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _written(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    words = ", ".join(action.option_strings)
    if action.nargs == 0:
        return f"`{words}`"
    if action.choices is not None and action.metavar is None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    return f"`{words} {value}`".replace("|", "\\|")


def _help(action: argparse.Action) -> str:
    text = action.help or ""
    values = {name: value for name, value in vars(action).items() if not name.startswith("_")}
    return " ".join((text % values).split()).replace("|", "\\|")
