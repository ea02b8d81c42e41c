"""Checks of options say what came and what is allowed, with the error of the part that asks."""

import doctest
import math

import pytest

from gramjd import options
from gramjd.errors import AggregatorError, InputError


def test_what_is_allowed_comes_back():
    assert doctest.testmod(options).attempted
    assert options.as_number(2, "rate", "above 0", lambda x: x > 0) == 2.0
    assert options.as_count(3, "steps", 1) == 3
    assert options.as_choice("graph", "mode", ("graph", "default")) == "graph"


@pytest.mark.parametrize("error", [InputError, AggregatorError])
@pytest.mark.parametrize(
    ("check", "said"),
    [
        (lambda **e: options.as_number(-1, "rate", "above 0", lambda x: x > 0, **e), "rate must be a number above 0"),
        (lambda **e: options.as_number(True, "rate", "above 0", lambda x: x > 0, **e), "got True"),
        (lambda **e: options.as_number(math.nan, "rate", "above 0", lambda x: x > 0, **e), "got nan"),
        (lambda **e: options.as_count(1.0, "steps", 1, **e), "steps must be an int, 1 or more; got 1.0"),
        (lambda **e: options.as_count(0, "steps", 1, **e), "got 0"),
        (lambda **e: options.as_choice(["graph"], "mode", ("graph",), **e), "mode is .*expected one of 'graph'"),
    ],
)
def test_what_is_not_is_refused(check, said, error):
    with pytest.raises(error, match=said):
        check(error=error)
