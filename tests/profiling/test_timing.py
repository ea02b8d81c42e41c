"""Interleaved timing, on a clock that the steps themselves advance: no test here depends on how busy the machine is."""

import pytest

from gramjd.profiling import timing
from gramjd.profiling.timing import FEWEST, interleave, ratio


class Clock:
    def __init__(self):
        self.now = 0.0
        self.calls = []

    def step(self, name, seconds):
        def take():
            self.calls.append(name)
            self.now += seconds

        return take


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_every_round_has_all_and_starts_with_another(clock):
    times = interleave({name: clock.step(name, 1.0) for name in "abc"}, rounds=6, warmup=1)
    assert times == {name: [1.0] * 6 for name in "abc"}
    assert "".join(clock.calls) == "abc" + "abcbcacab" * 2


def test_drift_cancels_in_the_ratio(clock):
    def drifting(seconds):
        def take():
            clock.now += seconds * (1 + clock.now)

        return take

    times = interleave({"plain": drifting(0.01), "double": drifting(0.02)}, rounds=30, warmup=0)
    assert times["plain"][-1] > 2 * times["plain"][0]
    assert ratio(times["double"], times["plain"]).median == pytest.approx(2, rel=0.03)


def test_stops_early_but_not_before_the_fewest_rounds(clock):
    assert len(interleave({"a": clock.step("a", 1.0)}, rounds=100, warmup=0, seconds=0.5)["a"]) == FEWEST
    assert len(interleave({"a": clock.step("a", 1.0)}, rounds=100, warmup=0, seconds=8.5)["a"]) == 9


def test_quick_steps_are_repeated_within_a_round(clock):
    steps = {"quick": clock.step("quick", 0.25), "slow": clock.step("slow", 3.0)}
    times = interleave(steps, rounds=2, warmup=0, at_least=1.0)
    assert times == {"quick": [0.25, 0.25], "slow": [3.0, 3.0]}
    assert clock.calls.count("quick") == 8
    assert clock.calls.count("slow") == 2


def test_a_clock_of_ones_own(clock):
    """It is read before and after a step, and nothing else is."""
    ticks = iter(range(100))
    times = interleave({"a": clock.step("a", 5.0)}, rounds=3, warmup=0, clock=lambda: float(next(ticks)))
    assert times == {"a": [1.0, 1.0, 1.0]}


def test_real_clock():
    times = interleave({"a": lambda: sum(range(1000))}, rounds=3, warmup=0)["a"]
    assert len(times) == 3
    assert min(times) > 0


def test_ratio_needs_as_many_rounds_of_both():
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0])
