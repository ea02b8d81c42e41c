"""The promise, over the zoo and over random programs: a traced Gramian is exact, or the trace is refused."""

import warnings
from collections.abc import Callable, Sequence
from random import Random

import pytest
import torch
from torch import Tensor

import gramjd
from gramjd.compiled.simplify import reshaped
from gramjd.errors import GramjdError
from gramjd.kernels.tracing import TraceError
from tests.compiled.replayed import in_graph
from tests.oracle import oracle_gramian, relative_error, tolerance
from tests.strategies_graphs import program
from tests.zoo import CASES, Case
from tests.zoo.registry import sandbox, single_thread

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning", "ignore::DeprecationWarning")
# These draw with an operation that draws inside, and so cannot be drawn once and given again.
DRAW_INSIDE = {"act-rrelu-train", "math-rrelu-inplace"}


def traced(build: Callable[[], Sequence[Tensor]], dtype: torch.dtype) -> Tensor:
    """What the graph of `build` gives for what `build` draws."""

    def run(donates: bool) -> Tensor:
        found, given = in_graph(build, donates=donates)
        graph = found.graph if donates else reshaped(found.graph)
        with sandbox(0, dtype), torch.no_grad():
            out: Tensor = graph(*given)[0]
        return out

    try:
        return run(True)
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
    return run(False)


QUICK = [case for case in CASES.values() if not case.slow and case.name not in DRAW_INSIDE]
SOME = [
    pytest.param(case, id=case.name, marks=[] if n % 24 == 0 else [pytest.mark.slow]) for n, case in enumerate(QUICK)
]


@pytest.mark.parametrize("case", SOME)
def test_the_zoo_in_graphs(case: Case) -> None:
    dtype = case.dtypes[0]
    with single_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            losses, inputs = case.make(dtype)
            expected = oracle_gramian(losses, inputs)
            eager = gramjd.gramian(losses, inputs)
            found = traced(lambda: [gramjd.gramian(*case.make(dtype))], dtype)
        except (TraceError, GramjdError):
            return
    # As close to the oracle as the eager one is.
    off = max(tolerance(case, dtype), 2 * float(relative_error(eager, expected)))
    assert relative_error(found, expected) <= off


def test_most_of_the_zoo_is_not_refused() -> None:
    refused = 0
    some = [case for case in QUICK if not case.name.startswith("ragged-")][::32]  # whose shapes depend on the data
    with single_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in some:
            try:
                traced(lambda: [gramjd.gramian(*case.make(case.dtypes[0]))], case.dtypes[0])  # noqa: B023
            except (TraceError, GramjdError):
                refused += 1
    assert refused < 0.15 * len(some)


PROGRAMS, PER_TEST = 200, 10


@pytest.mark.parametrize(
    "first", [pytest.param(n, marks=[pytest.mark.slow] * (n >= 50)) for n in range(0, PROGRAMS, PER_TEST)]
)
def test_random_programs_in_graphs(first: int) -> None:
    traces = 0
    with single_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in range(first, first + PER_TEST):
            random = Random(n)
            seeds = [random.randint(0, 2**31 - 1) for _ in range(random.randint(1, 10))], n, n + 1
            losses = program(*seeds).losses
            parts = [losses] if isinstance(losses, Tensor) else losses
            if not all(part.requires_grad and part.numel() for part in parts):
                continue
            expected = oracle_gramian(losses)
            if not expected.isfinite().all() or expected.norm() < 1e-12:
                continue
            try:
                found = traced(lambda: [gramjd.gramian(program(*seeds).losses)], torch.float64)  # noqa: B023
            except TraceError:
                continue
            traces += 1
            assert relative_error(found, expected) < 1e-9, program(*seeds)
    assert traces  # routes by data, which programs take as well, are refused
