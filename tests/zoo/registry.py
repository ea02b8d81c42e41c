"""Where the cases of the zoo are kept, and the shorthand that keeps one case to a line or two."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Losses = Tensor | Sequence[Tensor]
Built = tuple[Losses, Sequence[Tensor] | None]
Layout = Literal["sample", "dense"] | None
BOTH = (torch.float64, torch.float32)
CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Case:
    """A small model with data: ``make(dtype)`` builds it under a fixed seed.

    ``layout``: "sample" (the batch axis survives to the first layer), "dense" (an operation must be reported as dense)
    or None (no claim). ``tol`` loosens both dtypes (a model that computes in float32 whatever it is given).
    ``may_refuse``: an error of gramjd is as good as the exact Gramian.
    """

    name: str
    build: Callable[[], Any]
    layout: Layout = None
    dtypes: tuple[torch.dtype, ...] = BOTH
    tol: float | None = None
    slow: bool = False
    may_refuse: bool = False

    def make(self, dtype: torch.dtype) -> Built:
        """Losses, and the inputs to differentiate by (None: all leaves)."""
        with sandbox(zlib.crc32(self.name.encode()), dtype):
            built = self.build()
        return built if isinstance(built, tuple) else (built, None)


@contextmanager
def sandbox(seed: int, dtype: torch.dtype) -> Iterator[None]:
    """A seed and a default dtype that do not leak out."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextmanager
def single_thread() -> Iterator[None]:
    """Tiny operations are slower on several threads, much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def add(family: str, layout: Layout, table: Mapping[str, Callable[[], Any]], **options: Any) -> None:
    """Register ``table``: name to a function of nothing that returns losses, or a tuple (losses, inputs)."""
    for key, build in table.items():
        name = f"{family}-{key}"
        if name in CASES:
            raise ValueError(f"the zoo already has a case {name!r}; choose another name")
        CASES[name] = Case(name, build, layout, **options)


def add_ways(family: str, layout: Layout, table: Mapping[str, Callable[[], Tensor]], **options: Any) -> None:
    """Register each output [b, ..] of ``table`` under three kinds of losses.

    One loss per sample; one per sample and task, stacked; one per task, which depend on all samples. The latter two are
    as the first in all but the layout: they come in float64 alone.
    """
    kinds: dict[str, tuple[Layout, Callable[[Tensor], Losses]]] = {
        "": (layout, fit),
        "-stacked": (layout, lambda out: torch.stack([fit(out), out.flatten(1).tanh().sum(1)])),
        "-tasks": (None, lambda out: [fit(out).mean(), out.tanh().mean()]),
    }
    for suffix, (claim, losses) in kinds.items():
        builds = {f"{name}{suffix}": partial(_apply, losses, build) for name, build in table.items()}
        add(family, claim, builds, **({"dtypes": (torch.float64,)} if suffix else {}) | options)


def _apply(losses: Callable[[Tensor], Losses], build: Callable[[], Tensor]) -> Losses:
    return losses(build())


def param(*shape: int, scale: float = 1.0) -> nn.Parameter:
    """A leaf of the given shape."""
    return nn.Parameter(scale * torch.randn(shape))


def fit(out: Tensor, batch_dim: int = 0) -> Tensor:
    """Mean squared distance of each sample to a random target: a loss ``[b]`` that all of ``out`` matters to."""
    out = out.movedim(batch_dim, 0)
    return F.mse_loss(out, torch.randn_like(out), reduction="none").flatten(1).mean(1)


def net(*layers: nn.Module | Callable[[Tensor], Tensor], shape: Sequence[int] = (4, 6)) -> Tensor:
    """``fit`` of a chain of modules and functions, applied to random data."""
    x = torch.randn(*shape)
    for layer in layers:
        x = layer(x)
    return fit(x)
