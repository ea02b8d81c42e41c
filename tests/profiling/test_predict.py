"""Predicted peaks against counted ones."""

from functools import partial

import pytest

from gramjd.errors import BudgetError
from gramjd.profiling.bench.cases import BENCHMARKS, CASES
from gramjd.profiling.marks import ignore
from gramjd.profiling.memory import peak_bytes
from gramjd.profiling.methods import METHODS
from gramjd.profiling.predict import Prediction, largest_m, predict_peak

QUICK = ("mlp-32", "mlp-128", "cifar-32", "tasks-10")


def check(name, allowed):
    work = CASES[name].build()
    told = predict_peak(work)
    for method, expected in (("plain", told.plain), ("gramjd", told.peak)):
        step = METHODS[method](work, "UPGrad")
        work.clear()
        step(ignore)
        work.clear()
        counted = peak_bytes(partial(step, ignore))
        # UPGrad's weights are planned for losses that do not all bind each other; those that do take a shortcut.
        bound = method == "gramjd" and told.peak == told.saved + told.weights
        assert counted * (1 - allowed) <= expected <= counted * (1 + (0.3 if bound else allowed)), method


@pytest.mark.parametrize("name", QUICK)
def test_within_fifteen_percent(name):
    check(name, 0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in QUICK])
def test_within_fifteen_percent_on_all_cases(name):
    check(name, 0.15)


def test_what_was_held_before():
    work = CASES["mlp-32"].build()
    told = predict_peak(work)
    parameters = 4 * sum(p.numel() for p in work.parameters.values())
    assert told.held == parameters + 4 * 32 * 784 + 8 * 32  # images and labels
    # hidden, log-probabilities, their weight, losses
    assert told.saved == 4 * 32 * (1024 + 1024) + 4 * 32 * 10 + 4 + 4 * 32


def curve(power):
    return lambda m: Prediction(m, saved=3 * m**power, walk=0, weights=0, backward=0, plain=0, held=10)


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("memory", [100, 5000, 123456])
def test_largest_m(power, memory):
    asked = []

    def predict(m):
        asked.append(m)
        return curve(power)(m)

    fits = [m for m in range(2, 50000) if 10 + 3 * m**power <= memory]
    assert largest_m(predict, memory).m == max(fits)
    assert len(asked) < 60


def test_nothing_fits():
    with pytest.raises(BudgetError, match="with 2 losses needs 22 bytes, more than the 20 given"):
        largest_m(lambda m: Prediction(m, 6 * m, 0, 0, 0, 0, 10), 20)
