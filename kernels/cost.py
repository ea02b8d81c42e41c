"""What a route costs: seconds from a few measured constants of a device, and the choice between routes.

A product of [M, K] by [K, N] takes 2 M N K / flops (1 + half/M) (1 + half/N) (1 + half/K) seconds, moving an element
through memory 1 / elements, and every call `call`; products by oneDNN (`products`) have a rate and a call of their own.
The constants are data (`devices`): `devices.json` holds measured ones, `gramjd calibrate` measures those of another
machine, `load` puts them to use.

`Prices` turns the constants into seconds. The module of an operation says what each of its routes does in these terms,
as an `Estimate`, and `quickest` chooses. A choice depends on constants, sizes and `chunk()` alone, and on no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import NamedTuple, TypeVar, cast

import torch

from gramjd.kernels.devices import Constants, load, measured, user_file
from gramjd.kernels.products import library, pays
from gramjd.kernels.symmetric import block_size

__all__ = ["Constants", "Estimate", "Prices", "chunk", "chunks_of", "chunks_within", "load", "quickest", "user_file"]

# Elements of a chunk, the part of an operand that is computed at a time. At most: 4 MiB of floats stay in the cache
# of a CPU, and were fastest or near it for all shapes. At least: products become slow below.
CHUNK, LEAST_CHUNK = 1 << 20, 1 << 16
# Chunks that the temporaries of a route may take together.
TEMPORARIES = 2
# Elements of a chunk that is copied, or written over: quicker than new memory where it stays in the nearer caches.
IN_CACHE = 1 << 18
# Elements of a chunk on a GPU: 16 MiB of floats, which the second-level caches of data-centre GPUs hold.
GPU_CHUNK = 1 << 22
_chunk: ContextVar[int] = ContextVar("gramjd_chunk", default=CHUNK)


def chunk() -> int:
    """Elements that a temporary of an operation may have: `CHUNK`, or what `chunks_of` says."""
    return _chunk.get()


@contextmanager
def chunks_of(elements: int) -> Iterator[None]:
    """Let temporaries have so many elements within a `with` block.

    >>> with chunks_of(1000):
    ...     chunk()
    1000
    """
    token = _chunk.set(elements)
    try:
        yield
    finally:
        _chunk.reset(token)


def chunks_within(nbytes: float, itemsize: int = 4) -> AbstractContextManager[None]:
    """`chunks_of` as many elements as `nbytes` hold, but at least `LEAST_CHUNK` and at most `CHUNK`."""
    return chunks_of(int(min(CHUNK, max(LEAST_CHUNK, nbytes / itemsize))))


Choice = TypeVar("Choice", bound=Callable[..., str])


class Estimate(NamedTuple):
    """Seconds that a route takes, and elements of its temporaries."""

    seconds: float
    elements: int


def quickest(routes: Mapping[str, Estimate]) -> str:
    """The quickest route of those whose temporaries fit into `TEMPORARIES` chunks; if none does, the leanest.

    >>> quickest({"rows": Estimate(2e-3, 1000), "pairwise": Estimate(1e-3, 5000)})
    'pairwise'
    >>> with chunks_of(1000):
    ...     quickest({"rows": Estimate(2e-3, 1000), "pairwise": Estimate(1e-3, 5000)})
    'rows'
    """
    lean = {name: found for name, found in routes.items() if found.elements <= TEMPORARIES * chunk()}
    if lean:
        return min(lean, key=lambda name: lean[name].seconds)
    return min(routes, key=lambda name: routes[name].elements)


def kept(choose: Choice) -> Choice:
    """`choose` with its results kept, for a function that depends on its arguments and on `chunk()` alone."""

    @lru_cache(maxsize=4096)
    def found(_: int, *args: Hashable) -> str:
        return choose(*args)

    @wraps(choose)
    def chosen(*args: Hashable) -> str:
        return found(chunk(), *args)

    return cast(Choice, chosen)


@dataclass(frozen=True)
class Prices:
    """Seconds of what routes are made of: products, passes over memory and calls, by the constants `known`."""

    known: Constants

    @property
    def library(self) -> str:
        """The library of large products that the constants are for."""
        return "onednn" if self.known.onednn_flops > 0 else "torch"

    def batch(self, times: float, M: float, N: float, K: float) -> float:
        """A batch of `times` products of [M, K] by [K, N]."""
        half = self.known.half
        slow = (1 + half / max(1, M)) * (1 + half / max(1, N)) * (1 + half / max(1, K))
        return 2 * M * N * K * times * slow / self.known.flops

    def product(self, M: float, N: float, K: float) -> float:
        """One product of [M, K] by [K, N]."""
        if self.library == "onednn" and pays(M, K, N):
            return 2 * M * N * K / self.known.onednn_flops + self.known.onednn_call
        return self.batch(1, M, N, K)

    def gram(self, R: int, d: float) -> float:
        """`J J^T` of J [R, d], upper, in the blocks of `symmetric`."""
        step = max(1, min(block_size(R, self.library), R))
        return self.product(step, R, d) * R / step * (1 + step / R) / 2

    def blocks(self, R: int) -> float:
        """Products that `gram` makes for R rows."""
        return R / max(1, block_size(R, self.library))

    def passes(self, elements: float, calls: float) -> float:
        """Moving `elements` through memory, and making `calls`."""
        return elements / self.known.elements + calls * self.known.call


def constants_of(device: str, dtype: torch.dtype) -> Constants:
    """The constants in force for a type of device and a dtype (`in_force`)."""
    return in_force(measured(device, dtype))


def in_force(known: Constants) -> Constants:
    """`known`, without oneDNN's constants where oneDNN is not the library of large products."""
    return known if library() == "onednn" else known._replace(onednn_flops=0.0, onednn_call=0.0)
