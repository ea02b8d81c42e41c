"""`gramjd profile`: its views, and what it refuses."""

import pytest

from gramjd.cli import main

MAKE = "tests.profiling.makers:make"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--predict", "--sweep", "m=4,8"], "m = 8  saved"),
        (["--largest-m", "--memory", "100kB"], "largest m: "),
        (["--layers", "--m", "4"], "the walk in between"),
    ],
)
def test_views(options, expected, capsys):
    if "100kB" in options:
        options = [*options[:-1], "0.1MB"]
    assert main(["profile", MAKE, *options]) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--memory", "8GB?"], ["--sweep", "m=1"], ["--memory-limit", "-1"]])
def test_bad_options(options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["profile", MAKE, *options])
    assert stop.value.code == 2
    assert "expected" in capsys.readouterr().err
