"""The search for a learning rate, on areas that are known in advance."""

import math
from itertools import pairwise

import pytest

from gramjd.experiments.protocol import FACTOR, Plan, best_rate, coarse, fine, mean_areas, missing


def follow(plan, area):
    """Make every run that the plan asks for; returns them in order, and the areas."""
    areas, order = {}, []
    while todo := missing(plan, areas):
        for rate, seed in todo:
            areas.setdefault(rate, {})[seed] = area(rate, seed)
            order.append((rate, seed))
    return order, areas


def best_of(plan, areas):
    return best_rate(mean_areas(areas, plan.search_seeds))


def valley(rate, seed):
    return math.inf if rate > 5 else 1 + math.log10(rate / 0.3) ** 2 + 0.01 * seed


def test_the_papers_protocol():
    plan = Plan()
    order, areas = follow(plan, valley)
    coarse, second = order[: 22 * 8], order[22 * 8 :]
    assert [rate for rate, seed in coarse if seed == 0][::3] == pytest.approx([10.0**k for k in range(-5, 3)], rel=1e-5)
    rates = fine(plan, areas)
    # The best two of the grid are 0.215 and 0.464.
    assert (rates[0], rates[-1], len(rates)) == (pytest.approx(0.1, rel=1e-5), pytest.approx(1.0, rel=1e-5), 50)
    assert len(second) >= 50 * 8 - 2 * 8  # a rate of the grid may come up again, and is not run twice
    assert [math.log(b / a) for a, b in pairwise(rates)] == pytest.approx([math.log(10) / 49] * 49, abs=1e-4)
    assert best_of(plan, areas) == pytest.approx(0.3, rel=0.03)
    assert len(order) == len(set(order))


def test_the_best_rate_gets_all_seeds():
    plan = Plan(low=1e-3, high=10, fine=8, search_seeds=1, seeds=4)
    order, areas = follow(plan, valley)
    assert len(plan.coarse()) == 13
    assert len(order) == 13 + 7 + 3  # the last rate of the second stage, 1, is in the grid already
    best = best_of(plan, areas)
    assert [seed for rate, seed in order if rate == best] == [0, 1, 2, 3]
    assert all(len(of) == 1 for rate, of in areas.items() if rate != best)
    # The other seeds of the winner do not enter the comparison, or a lucky one would be replaced.
    areas[best] |= {1: 99.0, 2: 99.0, 3: 99.0}
    assert best_of(plan, areas) == best


def test_stops_when_nothing_converges():
    order, areas = follow(Plan(seeds=2, search_seeds=2), lambda rate, seed: math.inf)
    assert len(order) == 44
    assert best_of(Plan(), areas) is None


def test_one_converging_rate_is_enough():
    plan = Plan(low=0.1, high=10, fine=3, search_seeds=1, seeds=1)
    _, areas = follow(plan, lambda rate, seed: 1.0 if rate < 0.11 else math.inf)
    assert fine(plan, areas) == pytest.approx([0.1 / FACTOR, 0.1, 0.1 * FACTOR], rel=1e-5)


def test_goes_on_from_any_point():
    plan = Plan(low=0.01, high=1, fine=4, search_seeds=2, seeds=3)
    whole, _ = follow(plan, valley)
    for stop in range(len(whole)):
        areas = {}
        for rate, seed in whole[:stop]:
            areas.setdefault(rate, {})[seed] = valley(rate, seed)
        assert missing(plan, areas)[0] == whole[stop]


def test_a_short_range_grows_to_where_the_best_rate_is():
    plan = Plan(low=0.01, high=0.1, fine=3, search_seeds=2, seeds=3, widen=True)
    order, areas = follow(plan, valley)
    assert sorted(areas)[0] == 0.01  # the valley is above
    assert best_of(plan, areas) == pytest.approx(0.3, rel=0.3)
    assert coarse(plan, areas)[-1] == pytest.approx(0.464, rel=1e-3)  # one rate beyond the best one
    for stop in range(len(order)):  # and goes on from any point
        some = {}
        for rate, seed in order[:stop]:
            some.setdefault(rate, {})[seed] = valley(rate, seed)
        assert missing(plan, some)[0] == order[stop]


def test_a_range_that_grows_ends_with_the_papers():
    for low, high, better in (
        (1e-2, 1e-1, lambda rate: -rate),
        (1e-2, 1e-1, lambda rate: rate),
        (1, 2, lambda rate: math.inf),
    ):
        plan = Plan(low=low, high=high, fine=0, search_seeds=1, seeds=1, widen=True)
        _, areas = follow(plan, lambda rate, seed, better=better: better(rate))
        assert min(areas) > 0.99e-5
        assert max(areas) < 1.01e2
        assert min(areas) < 2.2e-5 or max(areas) > 46
