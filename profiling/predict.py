"""The peak memory of a step before the step is run: forward pass, walk and backward pass on paper (`paper.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from gramjd.errors import BudgetError
from gramjd.profiling.paper import counted_step
from gramjd.profiling.target import Work

# What UPGrad's solver has at once, in float64 as counted: copies of the m x m problem, and for few losses, whose
# problems are solved together by factorisation, so many of the m of them. Losses that all bind each other need less.
COPIES, TOGETHER, FEW = 22, 3, 48


# The words of a prediction, as `gramjd profile --predict` explains them.
MEANINGS = {
    "m": "number of losses",
    "saved": "activations that the forward pass keeps for the backward pass, and the losses",
    "walk": "most that computing the Gramian takes at once, beyond what is saved",
    "weights": "what UPGrad takes to solve for the weights, beyond what is saved",
    "backward": "most that is alive in the weighted backward pass, with what is saved and the gradients",
    "plain": "the peak of a plain step, losses.mean().backward()",
    "held": "parameters, buffers and the batch, which are there before the step",
    "peak": "of a step with gramjd, beyond what is held: the largest of saved + walk, saved + weights, backward",
}


@dataclass(frozen=True)
class Prediction:
    """Bytes beyond what was held before the step.

    Args:
        m: number of losses.
        saved: activations that the graph keeps, and the losses.
        walk: most that cotangents, factors, workspaces and G take at once, beyond `saved`.
        weights: what the solver takes beyond `saved`, with G.
        backward: most that is alive in the weighted backward pass, saved tensors and gradients included.
        plain: the same of a plain step.
        held: parameters, buffers and batch, which were there before.
    """

    m: int
    saved: int
    walk: int
    weights: int
    backward: int
    plain: int
    held: int

    @property
    def peak(self) -> int:
        """Of a step with gramjd."""
        return max(self.saved + self.walk, self.saved + self.weights, self.backward)

    def to_dict(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self) | {"peak": self.peak}


def predict_peak(work: Work) -> Prediction:
    """Peak memory of a step with gramjd's `update="backward"` and UPGrad, from a step on paper.

    Args:
        work: from `gramjd.profiling.target.build`.

    Raises:
        GraphError: the graph cannot be walked.
    """
    counted = counted_step(work)
    return Prediction(
        m=work.m,
        saved=counted.saved,
        walk=counted.walk,
        weights=counted.gramian + int(8 * work.m**2 * (COPIES + (TOGETHER * work.m if work.m < FEW else 0))),
        backward=counted.plain + counted.gramian,
        plain=counted.plain,
        held=counted.held,
    )


def largest_m(predict: Callable[[int], Prediction], memory: int, start: int = 8) -> Prediction:
    """The prediction of the largest m whose step, with what is held before it, fits into `memory` bytes.

    m is doubled while the next prediction is expected to fit, then closed in on along the line through the last two:
    no forward pass is run that is expected not to fit.

    Args:
        predict: `m -> Prediction`.
        memory: bytes in all.
        start: first m tried; must be 2 or more.

    Raises:
        BudgetError: not even two losses fit.

    >>> linear = lambda m: Prediction(m, saved=100 * m, walk=0, weights=0, backward=0, plain=0, held=50)
    >>> largest_m(linear, 7777).m
    77
    """
    found: dict[int, Prediction] = {}

    def needed(m: int) -> int:
        if m not in found:
            found[m] = predict(m)
        return found[m].held + found[m].peak

    while start > 2 and needed(start) > memory:
        start //= 2
    if needed(start) > memory:
        raise BudgetError(
            f"a step with {start} losses needs {needed(start)} bytes, more than the {memory} given: shrink the model "
            "or the samples"
        )
    low, slope, bound = start, needed(start) / start, 1 << 40
    while True:
        reach = low + int((memory - needed(low)) / max(slope, 1e-9))
        new = min(2 * low, reach, bound - 1)
        if new <= low:
            new = low + 1  # the line may bend: the next one decides
            if new >= bound or needed(new) > memory:
                return found[low]
        if needed(new) > memory:
            bound = new
            slope = (needed(new) - needed(low)) / (new - low)
            continue
        slope = max((needed(new) - needed(low)) / (new - low), 1e-9)
        low = new
