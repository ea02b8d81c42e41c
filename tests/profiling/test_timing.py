"""Interleaved timing."""

import time

import pytest
from gramjd.profiling.timing import FEWEST, interleave, ratio


def test_every_round_has_all_and_starts_with_another():
    calls = []
    times = interleave({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=6, warmup=1)
    assert {name: len(values) for name, values in times.items()} == {"a": 6, "b": 6, "c": 6}
    assert "".join(calls) == "abc" + "abcbcacab" * 2


def test_ratio_of_known_times():
    steps = {"short": lambda: time.sleep(0.004), "long": lambda: time.sleep(0.012)}
    times = interleave(steps, rounds=7, warmup=0)
    assert 1.5 < ratio(times["long"], times["short"]).median < 4.5


def test_stops_early_but_not_before_the_fewest_rounds():
    times = interleave({"a": lambda: time.sleep(0.002)}, rounds=100, warmup=0, seconds=0.001)
    assert len(times["a"]) == FEWEST


def test_quick_steps_are_repeated_within_a_round():
    calls = []
    times = interleave({"a": lambda: calls.append(time.sleep(0.001))}, rounds=2, warmup=0, at_least=0.01)
    assert len(times["a"]) == 2
    assert len(calls) >= 4
    assert times["a"][0] < 0.01


def test_ratio_needs_as_many_rounds_of_both():
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0])
