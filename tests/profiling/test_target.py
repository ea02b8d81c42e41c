"""What may be profiled, and what is said of the rest."""

import pytest
import torch

from gramjd.errors import InputError, LossError
from gramjd.profiling.target import build, load, spec_of
from tests.profiling import makers

HERE = "tests.profiling.makers"


def test_build():
    work = build(f"{HERE}:make", m=9)
    assert work.m == 9
    assert list(work.parameters) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert work.vector().shape == (9,)


def test_from_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from tests.profiling.makers import make\n\n\ndef two():\n    return make(2)\n")
    assert build(f"{path}:two").m == 2


def test_a_model_is_no_function_that_makes_one():
    with pytest.raises(InputError, match="got a Linear; expected a function that makes a model"):
        spec_of(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "m", "kind", "message"),
    [
        ("one_number", None, LossError, "single number"),
        ("without_graph", None, LossError, "does not require grad"),
        ("no_pair", None, InputError, r"returned a Sequential; it must return \(model, losses\)"),
        ("no_model", None, InputError, "returned a int as its model"),
        ("of_other_size", 3, InputError, "takes no argument `m`"),
        ("with_needs", None, InputError, "needs path"),
        ("nosuch", None, InputError, "has nothing called 'nosuch'"),
    ],
)
def test_broken_contracts(name, m, kind, message):
    with pytest.raises(kind, match=message):
        build(f"{HERE}:{name}", m)


@pytest.mark.parametrize("spec", ["nocolon", "nosuch.module:f", "nosuch.py:f", ":f"])
def test_bad_places(spec):
    with pytest.raises(InputError):
        load(spec)


def test_spec_of():
    assert spec_of(makers.make) == f"{HERE}:make"
    assert spec_of("a:b") == "a:b"
    with pytest.raises(InputError, match="isolate=False"):
        spec_of(lambda: None)
