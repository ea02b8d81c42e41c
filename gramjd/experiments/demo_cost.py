"""Time and memory of one training step, measured apart from the training runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from gramjd.experiments.data.images import Images
from gramjd.experiments.networks import DEMO, build
from gramjd.experiments.training import Method
from gramjd.profiling.memory import peak_bytes
from gramjd.profiling.timing import Spread, interleave, ratio, spread


@dataclass(frozen=True)
class StepCost:
    """Cost of a step: forward, `.grad`, optimiser. `over_first` is its time over the first method's, round by round."""

    network: str
    method: str
    milliseconds: Spread
    over_first: Spread
    peak_bytes: int


def step_costs(
    network: str, methods: Sequence[Method], data: Images, *, batch: int, seed: int, rounds: int
) -> list[StepCost]:
    """Cost of a step with each method, from the same weights and on the same batch.

    Times come from steps taken in turns; memory from one further step, as counting allocations takes time.

    Args:
        network: a key of `DEMO`.
        methods: compared with the first of them.
        data: its first training images are used.
        batch: images per step.
        seed: of the initial weights.
        rounds: timed steps of each method.
    """
    steps = {method.name: _step(network, method, data, batch, seed) for method in methods}
    times = interleave({name: take for name, (_, take) in steps.items()}, rounds=rounds)
    costs = []
    for name, (clear, take) in steps.items():
        clear()
        costs.append(
            StepCost(
                network,
                name,
                spread([1e3 * t for t in times[name]]),
                ratio(times[name], times[methods[0].name]),
                peak_bytes(take),
            )
        )
    return costs


def _step(
    network: str, method: Method, data: Images, batch: int, seed: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """`clear()` drops the gradients, `take()` takes one step."""
    model = build(DEMO[network], seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images, labels = data.train_images[:batch], data.train_labels[:batch]

    def take() -> None:
        optimizer.zero_grad()
        method.backward(cross_entropy(model(images), labels, reduction="none"))
        optimizer.step()

    return optimizer.zero_grad, take
