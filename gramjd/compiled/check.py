"""A compiled step against an eager one, on the same numbers: the first time that a graph runs, and when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.errors import CompileError

# What rounding explains, relative to the largest number; by the coarsest type that took part.
TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
# Adaptive optimizers divide by the size of a gradient, and so enlarge the rounding of those near zero.
OF_UPDATES = 0.02


class Outcome(NamedTuple):
    """What a step gave: losses, the Gramian, and by name what it changed."""

    losses: Sequence[Tensor]
    gramian: Tensor
    changes: dict[str, Tensor]


@contextmanager
def undone(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """After the block tensors and random numbers are as before. Yields copies of the tensors."""
    before = [tensor.detach().clone() for tensor in tensors]
    devices = sorted({t.device.index for t in tensors if t.is_cuda and t.device.index is not None})
    with torch.random.fork_rng(devices):
        try:
            yield before
        finally:
            with torch.no_grad():
                for tensor, was in zip(tensors, before, strict=True):
                    tensor.copy_(was)


@contextmanager
def undone_on_error(tensors: Sequence[Tensor], before: Sequence[Tensor]) -> Iterator[None]:
    """Where the block fails, give tensors back the numbers that they had."""
    random = torch.get_rng_state()
    try:
        yield
    except BaseException:
        torch.set_rng_state(random)
        with torch.no_grad():
            for tensor, was in zip(tensors, before, strict=True):
                tensor.copy_(was)
        raise


def compare(compiled: Outcome, eager: Outcome, tolerance: float, describe: Callable[[], str]) -> None:
    """Raise CompileError if the two differ by more than rounding."""
    pairs = [(f"losses[{n}]", a, b) for n, (a, b) in enumerate(zip(compiled.losses, eager.losses, strict=True))]
    pairs.append(("the Gramian", compiled.gramian, eager.gramian))
    for what, mine, theirs in pairs:
        _agree(what, mine, theirs, tolerance, 0.0, describe)
    # A parameter whose gradient is zero but for rounding has the rounding of all.
    floor = tolerance / 100 * sum(float(change.double().square().sum()) for change in eager.changes.values()) ** 0.5
    for name, mine in compiled.changes.items():
        _agree(f"the change of {name}", mine, eager.changes[name], max(tolerance, OF_UPDATES), floor, describe)


def _agree(
    what: str, mine: Tensor, theirs: Tensor, tolerance: float, floor: float, describe: Callable[[], str]
) -> None:
    a, b = mine.detach().double(), theirs.detach().double()
    size = float(b.norm())
    off = float((a - b).norm())
    if not off <= tolerance * size + floor + torch.finfo(torch.float64).tiny:
        raise CompileError(
            f"{what} of the compiled step differs from the eager one: by {off:.3g}, of {size:.3g} ({describe()}). "
            "Nothing was changed. Something that the function of the losses reads differs between its calls, or the "
            'compiler is wrong here: try mode="graph", or train without gramjd.compile, and please report it'
        )


def invariant(weights: Tensor, gramian: Tensor, squared: Tensor, tolerance: float, describe: Callable[[], str]) -> None:
    """Raise CompileError unless `w^T G w = |J^T w|^2`, for the squared norm of the update."""
    w = weights.double()
    expected, found = float(w @ gramian.double() @ w), float(squared)
    scale = float(w.abs() @ gramian.double().abs() @ w.abs())
    if not abs(expected - found) <= tolerance * scale:
        raise CompileError(
            f"the squared norm of the compiled update is {found:.6g}, and w^T G w is {expected:.6g} ({describe()}): "
            'one of them is wrong; try mode="graph", or train without gramjd.compile, and please report it'
        )
