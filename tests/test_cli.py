"""The command line: its table, its help, and what it says when something is wrong."""

import subprocess
import sys
from importlib import import_module

import pytest

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
        (["demo", "iwrm", "--aggregator", "nosuch"], "invalid choice: 'nosuch'"),
        (["demo", "iwrm", "--epochs", "0"], "expected 1 or more"),
        (["demo", "iwrm", "--rates", "0.1,-1"], "expected positive numbers"),
        (["demo", "iwrm", "--rates", "fast"], "invalid _rates value: 'fast'"),
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


def test_building_the_parser_loads_no_extra():
    code = (
        "import sys, gramjd.cli; gramjd.cli.build_parser();"
        "print({'matplotlib', 'sklearn', 'scipy', 'triton', 'torchjd'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
