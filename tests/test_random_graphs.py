"""The Gramian of random programs equals the oracle's."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from torch import Tensor

import gramjd
from tests.oracle import assert_close_gramian, flatten, oracle_gramian
from tests.strategies_graphs import Program, programs
from tests.zoo.registry import single_thread

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
TOLERANCE = 1e-11


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


RELAXED = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


def check(program: Program) -> None:
    """Exact, twice (the graph stays usable), unless the program's losses are constant or not finite."""
    losses = program.losses
    tensors = [losses] if isinstance(losses, Tensor) else losses
    assume(all(loss.requires_grad and loss.numel() for loss in tensors))
    expected = oracle_gramian(losses)
    assume(bool(expected.isfinite().all()) and bool(expected.norm() > 1e-12))
    note(repr(program))
    assert_close_gramian(gramjd.gramian(losses), expected, TOLERANCE, f"{len(flatten(losses))} losses")
    assert_close_gramian(gramjd.gramian(losses), expected, TOLERANCE, "second call")


@settings(max_examples=150, **RELAXED)
@given(programs())
def test_random_programs(program: Program) -> None:
    check(program)


@settings(max_examples=60, **RELAXED)
@given(programs(operations=3))
def test_short_random_programs(program: Program) -> None:
    check(program)


@pytest.mark.slow
@settings(max_examples=2000, **RELAXED)
@given(programs(operations=14))
def test_many_random_programs(program: Program) -> None:
    check(program)


def test_programs_print_readably() -> None:
    program = Program(["t0 = data [2, 3] @ parameter [3, 1]", "losses of t0, axes [0] kept: [2]"], torch.zeros(2))
    assert repr(program).splitlines() == ["Program:", *[f"  {line}" for line in program.lines]]
