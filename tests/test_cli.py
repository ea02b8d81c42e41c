"""The command line: its table, its help, and what it says when something is wrong."""

import subprocess
import sys
from importlib import import_module

import pytest

from gramjd import arguments
from gramjd.cli import COMMANDS, GROUPS, Command, build_parser, main


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)
def test_every_command_has_its_module_and_help(command, capsys):
    module = import_module(command.module)
    assert callable(module.run)
    with pytest.raises(SystemExit) as stop:
        main([*command.words.split(), "--help"])
    assert stop.value.code == 0
    assert command.help in " ".join(capsys.readouterr().out.split())


def test_every_group_is_described():
    assert {command.words.rsplit(" ", 1)[0] for command in COMMANDS if " " in command.words} == set(GROUPS)


def test_commands_of_one_group_share_its_parser():
    first = COMMANDS[0]
    parser = build_parser([first, Command("demo other", "another", first.module), Command("alone", "x", first.module)])
    assert parser.parse_args(["demo", "other", "--seed", "3"]).seed == 3
    assert parser.parse_args(["alone"]).seed == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["demo"], "COMMAND"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["demo", "iwrm", "--aggregator", "nosuch"], "got 'nosuch', expected one of: UPGrad, "),
        (["demo", "iwrm", "--ridge", "-1"], "got -1, expected a number, 0 or more"),
        (["demo", "iwrm", "--epochs", "0"], "expected 1 or more"),
        (["demo", "iwrm", "--rates", "0.1,-1"], "expected positive numbers"),
        (["demo", "iwrm", "--rates", "fast"], "invalid rates value: 'fast'"),
    ],
)
def test_wrong_usage_is_explained(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("package", ["sklearn", "matplotlib", "tqdm"])
def test_missing_extra_is_named(package, tmp_path, monkeypatch, capsys):
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["demo", "iwrm", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"gramjd: this needs {package}")
    assert "pip install 'gramjd[demo]'" in error
    assert list(tmp_path.iterdir()) == []


def test_the_package_is_the_command():
    found = subprocess.run([sys.executable, "-m", "gramjd", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("gramjd ")


def after(argv: list[str]) -> set[str]:
    """The packages that `gramjd ARGV` has imported when it ends."""
    code = (
        "import sys\nfrom gramjd.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('\\nLOADED', *{name.split('.')[0] for name in sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    return set(found.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["dmeo"],
        ["demo", "iwrn"],
        *([*command.words.split(), "--help"] for command in COMMANDS),
        *([*command.words.split(), "--nosuch"] for command in COMMANDS),
    ],
    ids=" ".join,
)
def test_help_and_typing_errors_load_no_torch(argv):
    found = after(argv)
    assert "LOADED" in found
    assert found & {"torch", "numpy", "matplotlib", "sklearn", "scipy", "triton", "torchjd"} == set()


def test_options_that_name_things_name_all_of_them():
    sets = import_module("gramjd.experiments.data.sets")
    assert set(sets.DATA) == set(arguments.IMAGE_SETS)
    assert set(sets.OPTIMIZERS) == set(arguments.OPTIMIZERS)
    assert set(arguments.COST_SETS) <= set(sets.DATA)
    assert set(import_module("gramjd.experiments.aggregators").BY_CLASS) == set(arguments.AGGREGATORS)
    plan = import_module("gramjd.experiments.protocol").Plan()
    args = build_parser().parse_args(["paper", "iwrm"])
    assert (args.rates_from, args.rates_to) == (plan.low, plan.high)
    assert (args.fine, args.search_seeds, args.seeds) == (plan.fine, plan.search_seeds, plan.seeds)


def test_options_of_another_command_are_not_declared():
    parser = build_parser(argv=["paper", "cost"])
    assert parser.parse_args(["paper", "cost", "--quick"]).quick
    assert not hasattr(parser.parse_args(["demo", "iwrm"]), "seed")
