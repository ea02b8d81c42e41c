"""The `gramjd` console command.

Every sub-command is one line in `COMMANDS`: its words, its help text, and the module that holds

    run(args) -> int        does the work, returns the exit status
    add_arguments(parser)   declares its options

Only the options of the command that was typed are declared, so that help and typing errors are answered without torch.
The options of a module that imports torch stand in `gramjd.arguments` instead, in a function named like the words
(`demo iwrm`: `demo_iwrm`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from gramjd import __version__, arguments
from gramjd.errors import GramjdError
from gramjd.extras import MissingExtraError

CHECKOUT_ONLY = ("gramjd.profiling.bench",)  # packages that are in no wheel


@dataclass(frozen=True)
class Command:
    """One line of the command table.

    Args:
        words: what is typed after `gramjd`; all but the last word name a group, as in `demo iwrm`.
        help: one line for `--help`.
        module: the module with `run`.
    """

    words: str
    help: str
    module: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options of the command."""
        declare = getattr(arguments, self.words.replace(" ", "_"), None)
        (declare or self._imported().add_arguments)(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Do the work; returns the exit status."""
        return int(self._imported().run(args))

    def _imported(self) -> ModuleType:
        try:
            return import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name not in CHECKOUT_ONLY:
                raise
            raise MissingExtraError(
                f"`{self.words}` needs a checkout of the repository, which holds more than an installed package does: "
                "clone it and run pip install -e '.[bench]' there"
            ) from None


GROUPS = {
    "demo": "runs that train something and show what came of it",
    "paper": "the experiments of the paper, and what it left out",
}

COMMANDS = (
    Command("demo iwrm", "one objective per image: UPGrad beside SGD on handwritten digits", "gramjd.experiments.demo"),
    Command("demo pinns", "differential equations: least squares beside Adam and L-BFGS", "gramjd.experiments.pinns"),
    Command("paper trajectories", "paths of every aggregator on two toy problems", "gramjd.experiments.trajectories"),
    Command("paper properties", "table 1, every yes and no found by search", "gramjd.experiments.properties"),
    Command("paper convergence", "theorem 1 on convex quadratics", "gramjd.experiments.convergence"),
    Command("paper iwrm", "one objective per image, every aggregator at its best rate", "gramjd.experiments.iwrm"),
    Command("paper objections", "weights and spectrum of G while UPGrad trains", "gramjd.experiments.objections"),
    Command("paper cost", "seconds per epoch and peak memory of every aggregator", "gramjd.experiments.cost"),
    Command("paper all", "all of these, short unless told otherwise", "gramjd.experiments.everything"),
    Command(
        "paper tasks", "two overlaid digits, a task each, by every way to combine them", "gramjd.experiments.tasks"
    ),
    Command("profile", "time and memory of a step on your own model, beside other methods", "gramjd.profiling.command"),
    Command(
        "bench", "the benchmark of a step, after the tests; or compare two results", "gramjd.profiling.bench.command"
    ),
    Command("calibrate", "measure this machine, so that routes are chosen for it", "gramjd.kernels.calibrate"),
    Command("check", "properties of an aggregator, or of all of them, with counterexamples", "gramjd.check"),
)


def build_parser(
    commands: Sequence[Command] = COMMANDS, argv: Sequence[str] | None = None, program: str = "gramjd"
) -> argparse.ArgumentParser:
    """The argument parser with one sub-parser per command of the table.

    Args:
        commands: the table.
        argv: if given, only the command that these words begin with gets its options.
        program: what stands in front of them.

    Raises:
        MissingExtraError: that command is not installed.
    """
    parser = argparse.ArgumentParser(prog=program, description="Jacobian descent at the price of gradient descent.")
    parser.add_argument("--version", action="version", version=f"gramjd {__version__}")
    levels = {"": parser.add_subparsers(title="commands", required=True, metavar="COMMAND")}
    for command in commands:
        *groups, name = words = command.words.split()
        level = ""
        for group in groups:
            parent, level = level, f"{level} {group}".strip()
            if level not in levels:
                sub = levels[parent].add_parser(group, help=GROUPS.get(level), description=GROUPS.get(level))
                levels[level] = sub.add_subparsers(title="commands", required=True, metavar="COMMAND")
        leaf = levels[level].add_parser(name, help=command.help, description=command.help)
        if argv is None or list(argv[: len(words)]) == words:
            command.add_arguments(leaf)
            leaf.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None, commands: Sequence[Command] = COMMANDS, program: str = "gramjd") -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the words after `gramjd`; those of the process when not given.
        commands: the table.
        program: what stands in front of the words.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        args = build_parser(commands, words, program).parse_args(words)
        return int(args.run(args))
    except GramjdError as error:
        print(f"gramjd: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
