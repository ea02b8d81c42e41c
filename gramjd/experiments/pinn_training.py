"""The methods of `gramjd demo pinns`, and one run of one of them on a budget of CPU time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gramjd import optim
from gramjd.experiments.pinn_problems import PROBLEMS, Task

Step = Callable[[float], object]
SEARCH_SEED = 100
RECORDS = 30  # points of a curve, log-evenly from 2 % of the time


@dataclass(frozen=True)
class Method:
    """An optimizer.

    Args:
        title: for tables and figures.
        make: from a task and one of the choices to a step, which is given the part of the time that is over.
        choices: options, of which the best on a seed of its own is taken; one, where nothing is to be chosen.
    """

    title: str
    make: Callable[..., Step]
    choices: tuple[dict[str, float], ...] = ({},)


def adam(task: Task, rate: float) -> Step:
    """Adam, with a rate that falls to zero like a cosine."""
    optimizer = torch.optim.Adam(task.parameters, lr=rate)

    def step(over: float) -> None:
        _decay(optimizer, rate, over)
        optimizer.zero_grad()
        task.loss().backward()
        optimizer.step()

    return step


def lbfgs(task: Task) -> Step:
    """L-BFGS, history 50, line search by the strong Wolfe conditions, 20 iterations a step."""
    options: dict[str, Any] = {"history_size": 50, "line_search_fn": "strong_wolfe", "max_iter": 20}
    optimizer = torch.optim.LBFGS(task.parameters, tolerance_grad=0.0, tolerance_change=0.0, **options)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = task.loss()
        loss.backward()
        return loss

    return lambda over: optimizer.step(closure)


def levenberg_marquardt(task: Task, scaling: str) -> Step:
    """`gramjd.optim.LevenbergMarquardt` with its defaults but for the scaling."""
    optimizer = optim.LevenbergMarquardt(task.parameters, weights=task.weights, scaling=scaling)
    return lambda over: optimizer.step(task.residuals)


def spring(task: Task, rate: float, damping: float) -> Step:
    """`gramjd.optim.SPRING` with momentum 0.9, with a rate that falls to zero like a cosine."""
    optimizer = optim.SPRING(task.parameters, lr=rate, damping=damping, weights=task.weights)

    def step(over: float) -> None:
        _decay(optimizer, rate, over)
        optimizer.step(task.residuals)

    return step


def _decay(optimizer: torch.optim.Optimizer, rate: float, over: float) -> None:
    optimizer.param_groups[0]["lr"] = max(rate * 0.5 * (1 + math.cos(math.pi * min(over, 1.0))), 1e-12)


METHODS: dict[str, Method] = {
    "adam": Method("Adam", adam, tuple({"rate": rate} for rate in (3e-3, 1e-2, 3e-2))),
    "lbfgs": Method("L-BFGS", lbfgs),
    "lm": Method("LM", lambda task: levenberg_marquardt(task, "none")),
    "lm-scaled": Method("LM, scaled", lambda task: levenberg_marquardt(task, "tensor")),
    "spring": Method(
        "SPRING",
        spring,
        tuple({"rate": rate, "damping": 1e-3} for rate in (0.03, 0.1, 0.3)),
    ),
}


def train(problem: str, method: str, choice: int, seed: int, seconds: float) -> dict[str, Any]:
    """One run: steps until `seconds` of CPU time are over, the clock stopped while errors are computed.

    Returns:
        `steps`; `times`, `errors`, `losses` of a curve; `error` at the end; `unknown`, the relative error of what was
        to be identified; `failed`, the reason if a step raised.
    """
    task = PROBLEMS[problem].task(seed)
    marks = [seconds * 0.02 ** (1 - k / (RECORDS - 1)) for k in range(RECORDS)]
    curve: list[tuple[float, float, float]] = []

    def record(used: float) -> None:
        curve.append((used, PROBLEMS[problem].error(task.model), float(task.loss().detach())))

    record(0.0)
    steps, failed = 0, None
    try:
        for used in _stepping(task, METHODS[method], choice, seconds):
            steps += 1
            if used >= marks[0]:
                record(used)
                marks = [mark for mark in marks if mark > used] or [math.inf]
    except Exception as error:  # a run that cannot go on is a result, too
        failed = f"{type(error).__name__}: {error}"[:200]
    times, errors, losses = zip(*curve, strict=True)
    found = None if task.unknown is None else abs(float(task.unknown[0].detach()) / task.unknown[1] - 1)
    return {
        **{"steps": steps, "times": times, "errors": errors, "losses": losses},
        **{"error": PROBLEMS[problem].error(task.model), "unknown": found, "failed": failed},
    }


def final_model(problem: str, method: str, choice: int, seed: int, seconds: float) -> nn.Module:
    """The network after such a run."""
    task = PROBLEMS[problem].task(seed)
    for _ in _stepping(task, METHODS[method], choice, seconds):
        pass
    return task.model


def _stepping(task: Task, method: Method, choice: int, seconds: float) -> Iterator[float]:
    """Do steps until the time is over; after each, the CPU time that all of them took."""
    step, used = method.make(task, **method.choices[choice]), 0.0
    while used < seconds:
        start = time.process_time()
        step(used / seconds)
        used += time.process_time() - start
        yield used
