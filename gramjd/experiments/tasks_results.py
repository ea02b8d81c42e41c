"""The runs in the journal of `gramjd paper tasks`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gramjd.experiments.tasks_training import Study

Run = Mapping[str, Any]


def select(runs: Sequence[Run], study: Study) -> list[Run]:
    """The runs of one study."""
    wanted = dataclasses.asdict(study)
    return [run for run in runs if all(run[name] == value for name, value in wanted.items())]


def studies(runs: Sequence[Run]) -> list[Study]:
    """Every study of which there is a run, in order of appearance."""
    names = [field.name for field in dataclasses.fields(Study)]
    return list(dict.fromkeys(Study(**{name: run[name] for name in names}) for run in runs))


def areas(runs: Sequence[Run], study: Study) -> dict[float, dict[int, float]]:
    """Rate -> seed -> mean training loss over all epochs, of one study; infinite for runs that diverged."""
    found: dict[float, dict[int, float]] = {}
    for run in select(runs, study):
        found.setdefault(run["rate"], {})[run["seed"]] = math.inf if run["area"] is None else run["area"]
    return found
