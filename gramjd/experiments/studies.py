"""The runs of the instance-wise experiments: which are needed, making one, and going on until the time is up."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from gramjd.errors import GramjdError
from gramjd.experiments.data.images import Images
from gramjd.experiments.data.sets import DATA, OPTIMIZERS
from gramjd.experiments.networks import build
from gramjd.experiments.protocol import Plan, missing
from gramjd.experiments.results import Journal
from gramjd.experiments.training import studied, train


@dataclasses.dataclass(frozen=True)
class Study:
    """What one search for a learning rate is made for.

    Args:
        data: a key of `DATA`.
        weighting: a name of Table 1.
        optimizer: a key of `OPTIMIZERS`.
        batch: images a step, each an objective.
        epochs: passes over the training images.
    """

    data: str
    weighting: str
    optimizer: str
    batch: int
    epochs: int


def areas(runs: Iterable[Mapping[str, Any]], study: Study) -> dict[float, dict[int, float]]:
    """Rate -> seed -> area under the loss curve, of the runs of one study; infinite for those that diverged."""
    found: dict[float, dict[int, float]] = {}
    for run in select(runs, study):
        area = math.inf if run["area"] is None else run["area"]
        found.setdefault(run["rate"], {})[run["seed"]] = area
    return found


def select(runs: Iterable[Mapping[str, Any]], study: Study) -> list[Mapping[str, Any]]:
    """Those runs that belong to `study`."""
    wanted = dataclasses.asdict(study)
    return [run for run in runs if all(run[name] == value for name, value in wanted.items())]


def studies(runs: Iterable[Mapping[str, Any]]) -> list[Study]:
    """Every study of which there is a run, in order of appearance."""
    names = [field.name for field in dataclasses.fields(Study)]
    return list(dict.fromkeys(Study(**{name: run[name] for name in names}) for run in runs))


def advance(
    journal: Journal,
    wanted: Sequence[tuple[Study, Plan]],
    *,
    root: Path,
    seconds: float,
    tick: Callable[[Study, float, int], object],
) -> bool:
    """Make the runs that are missing, one study after the other; True when nothing is left to do.

    Args:
        journal: where finished runs are found and new ones go.
        wanted: what to do, the most important first.
        root: the folder of the data sets' files.
        seconds: no run is begun after this long.
        tick: called before each run, with its study, rate and seed.
    """
    start = time.perf_counter()
    load = lru_cache(maxsize=4)(lambda data, seed: DATA[data].load(root, seed))
    for study, plan in wanted:
        while todo := missing(plan, areas(journal.runs(), study)):
            for rate, seed in todo:
                if time.perf_counter() - start >= seconds:
                    return False
                tick(study, rate, seed)
                journal.append(make(study, rate, seed, load(study.data, seed)))
    return True


def make(study: Study, rate: float, seed: int, data: Images) -> dict[str, Any]:
    """One run as a line of the journal. The seed is that of subset, weights, batches and aggregator.

    A run that the library refuses to go on with (gradients that overflow) counts as diverged; the reason is kept.
    """
    start = time.perf_counter()
    line: dict[str, Any] = {**dataclasses.asdict(study), "rate": rate, "seed": seed}
    method = studied(study.weighting, seed)
    model = build(DATA[study.data].network, seed)
    shared: dict[str, Any] = {"epochs": study.epochs, "batch": study.batch, "optimizer": OPTIMIZERS[study.optimizer]}
    try:
        run = train(study.data, model, method, rate, data, seed=seed, **shared)
    except GramjdError as error:
        line |= {"area": None, "diverged": True, "refused": f"{type(error).__name__}: {error}"[:200]}
    else:
        found = run.to_dict()
        line |= {name: found[name] for name in ("area", "loss", "cosine", "conflicts", "accuracy", "diverged")}
    return {**line, "seconds": round(time.perf_counter() - start, 2)}


def count(plan: Plan) -> int:
    """How many runs a plan comes to, if a rate of its first stage converges and none is in both stages."""
    return (len(plan.coarse()) + plan.fine) * plan.search_seeds + max(0, plan.seeds - plan.search_seeds)
