"""The paper's search for a learning rate, as a pure function of the runs that are done.

1. `coarse`: rates by a factor of `10^(1/3)`, from 1e-5 to 1e2 in the paper (22 values). With `widen`, a shorter range
   grows by a factor where its best rate is its last one, and below where none converged, until the paper's ends.
2. `fine`: log-evenly from the lower of the best two over `10^(1/3)` to the upper times `10^(1/3)` (50 values).
3. The best rate of all, with every seed.

Rates are compared by the area under the training-loss curve, averaged over the search seeds. In the paper's form the
search uses all seeds; a shorter one, with fewer rates or seeds, is a `Plan` with other numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FACTOR = 10 ** (1 / 3)
LEAST, GREATEST = 1e-5, 1e2  # rates of the paper

Areas = Mapping[float, Mapping[int, float]]


@dataclass(frozen=True)
class Plan:
    """How wide and how fine to search. The defaults are the paper's.

    Args:
        low: the least coarse rate.
        high: the greatest, up to rounding.
        fine: number of rates in the second stage.
        search_seeds: seeds that every rate is tried with, beginning with 0.
        seeds: seeds that the best rate is run with.
        widen: whether the coarse range grows.
    """

    low: float = LEAST
    high: float = GREATEST
    fine: int = 50
    search_seeds: int = 8
    seeds: int = 8
    widen: bool = False

    def coarse(self) -> list[float]:
        """The rates that the first stage begins with.

        >>> len(Plan().coarse()), Plan(low=0.01, high=0.1).coarse()
        (22, [0.01, 0.0215443, 0.0464159, 0.1])
        """
        return spaced(self.low, self.high, 1 + round(math.log(self.high / self.low, FACTOR)))


def spaced(low: float, high: float, count: int) -> list[float]:
    """`count` numbers log-evenly from `low` to `high`, rounded to 6 digits so that they can be looked up.

    >>> spaced(0.1, 10.0, 3)
    [0.1, 1.0, 10.0]
    """
    if count == 1:
        return [_rounded(math.sqrt(low * high))]
    return [_rounded(low * (high / low) ** (k / (count - 1))) for k in range(count)]


def mean_areas(areas: Areas, seeds: int) -> dict[float, float]:
    """Rate -> mean area over the seeds below `seeds`, of the rates that were tried with all of these."""
    return {
        rate: sum(of[seed] for seed in range(seeds)) / seeds
        for rate, of in areas.items()
        if all(seed in of for seed in range(seeds))
    }


def best_rate(means: Mapping[float, float]) -> float | None:
    """The rate with the least mean area; None if none is finite.

    >>> best_rate({0.1: 2.0, 0.2: 1.0, 10.0: math.inf})
    0.2
    """
    rate = min(means, key=lambda rate: means[rate], default=None)
    return rate if rate is not None and means[rate] < math.inf else None


def coarse(plan: Plan, areas: Areas) -> list[float]:
    """The rates of the first stage, as far as the runs that are done tell.

    >>> coarse(Plan(low=0.1, high=0.2, search_seeds=1, widen=True), {0.1: {0: 1.0}, 0.2: {0: 2.0}})
    [0.0464159, 0.1, 0.2]
    """
    rates = plan.coarse()
    if not plan.widen:
        return rates
    while len(means := mean_areas({r: areas[r] for r in rates if r in areas}, plan.search_seeds)) == len(rates):
        best, below, above = best_rate(means), _rounded(rates[0] / FACTOR), _rounded(rates[-1] * FACTOR)
        if best in (None, rates[0]) and below > LEAST * (1 - 1e-5):
            rates = [below, *rates]
        elif best == rates[-1] and above < GREATEST * (1 + 1e-5):
            rates = [*rates, above]
        else:
            break
    return rates


def fine(plan: Plan, areas: Areas) -> list[float]:
    """The rates of the second stage, once the first is done; none if no rate of the first converged."""
    means = mean_areas(areas, plan.search_seeds)
    ranked = sorted((means[rate], rate) for rate in coarse(plan, areas))
    best = [rate for area, rate in ranked[:2] if area < math.inf]
    if not best or plan.fine == 0:
        return []
    return spaced(min(best) / FACTOR, max(best) * FACTOR, plan.fine)


def missing(plan: Plan, areas: Areas) -> list[tuple[float, int]]:
    """The runs (rate, seed) that the present stage still needs; empty when the plan is done.

    Args:
        plan: the search.
        areas: rate -> seed -> area of the runs that are done; infinite for those that diverged.
    """
    for rates in (lambda: coarse(plan, areas), lambda: fine(plan, areas)):
        runs = _undone([(rate, seed) for rate in rates() for seed in range(plan.search_seeds)], areas)
        if runs:
            return runs
    rate = best_rate(mean_areas(areas, plan.search_seeds))
    return [] if rate is None else _undone([(rate, seed) for seed in range(plan.seeds)], areas)


def _undone(runs: Sequence[tuple[float, int]], areas: Areas) -> list[tuple[float, int]]:
    return [(rate, seed) for rate, seed in runs if seed not in areas.get(rate, {})]


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")
