"""`gramjd profile`: its views, and what it refuses."""

import re

import pytest

from gramjd.cli import main
from gramjd.profiling.predict import predict_peak
from gramjd.profiling.target import build

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


def test_words_and_units_are_explained(capsys):
    main(["profile", MAKE, "--predict", "--m", "4"])
    told = capsys.readouterr().out.splitlines()
    words = [line.split(":")[0] for line in told if re.match(r"\w+: ", line)]
    assert words == list(predict_peak(build(MAKE, 4)).to_dict())
    assert all(f"{word} " in told[0] for word in words)
    main(["profile", MAKE, "--layers", "--m", "4"])
    told = capsys.readouterr().out
    assert {"route:", "rows:", "MFLOP:", "kept:", "ms:"} <= {line.split()[0] for line in told.splitlines()}


@pytest.mark.parametrize("options", [["--memory", "8GB?"], ["--sweep", "m=1"], ["--memory-limit", "-1"]])
def test_bad_options(options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["profile", MAKE, *options])
    assert stop.value.code == 2
    assert "expected" in capsys.readouterr().err
