"""What a route costs: seconds from a few measured constants of a device, and the choice between routes.

A product of [M, K] by [K, N] takes 2 M N K / flops (1 + half/M) (1 + half/N) (1 + half/K) seconds, moving an element
through memory 1 / elements, and every call `call`; products by oneDNN (`products`) have a rate and a call of their own.
The constants are data (`devices`): `devices.json` holds measured ones, `gramjd calibrate` measures those of another
machine, `load` puts them to use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.kernels.devices import Constants, load, measured, user_file
from gramjd.kernels.products import library, pays
from gramjd.kernels.symmetric import block_size, even

__all__ = ["Constants", "Extent", "constants_of", "load", "route", "seconds", "user_file"]

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
    """The same for the largest temporaries of which one takes at most `nbytes`, as far as that is sensible."""
    return chunks_of(int(min(CHUNK, max(LEAST_CHUNK, nbytes / itemsize))))


class Extent(NamedTuple):
    """The sizes that decide the route: x [g, b, T, i] and c [K, g, b, T, o]."""

    g: int
    K: int
    b: int
    T: int
    i: int
    o: int


def extent(x: Tensor, c: Tensor) -> Extent:
    """Sizes of x [g, b, T, i] and c [K, g, b, T, o]."""
    g, b, T, i = x.shape
    return Extent(g, c.shape[0], b, T, i, c.shape[-1])


def operations(route: str, e: Extent) -> int:
    """Multiply-adds of a route, as if nothing were saved by symmetry but whole pairs of samples."""
    R = e.K * e.b
    return (
        e.g
        * {
            "product": e.b * e.b * e.i + R * R * e.o,
            "pairwise": ((e.b * e.T) ** 2 * e.i + (R * e.T) ** 2 * e.o) // 2,
            "rows": R * e.T * e.i * e.o + R * R * e.i * e.o,
            "shared": e.T**2 * e.i + R * e.T**2 * e.o + R * R * e.T * e.o,
        }[route]
    )


def options(e: Extent) -> tuple[str, ...]:
    """The routes that apply; one position leaves no choice."""
    return ("product",) if e.T == 1 else ("rows", "shared") if e.b == 1 else ("rows", "pairwise")


def route(e: Extent, constants: Constants | None = None) -> str:
    """The route that takes the least time of those whose temporaries fit into `TEMPORARIES` chunks, or the leanest.

    >>> route(Extent(g=1, K=1, b=32, T=4, i=512, o=512))
    'pairwise'
    """
    found = options(e)
    if len(found) == 1:
        return found[0]
    known = constants or constants_of("cpu", torch.float32)
    lean = [name for name in found if elements(name, e) <= TEMPORARIES * chunk()]
    if not lean:
        return min(found, key=lambda name: elements(name, e))
    return min(lean, key=lambda name: seconds(name, e, known))


def tile(e: Extent) -> tuple[int, int]:
    """Outputs and inputs of a chunk of rows: near a square, as narrow products are slow."""
    room = max(1, chunk() // max(1, e.K * e.b))
    side = max(1, math.isqrt(room))
    o = even(e.o, max(side, room // max(1, e.i)))
    i = even(e.i, max(1, room // o))
    return o, i


def pairs(e: Extent) -> int:
    """Samples of a strip of pairs: enough for a fast product, few enough that half of the pairs are left out."""
    room = chunk() // max(1, e.K * e.K * e.T * e.T * e.b)
    return even(e.b, max(1, min(room, -(-64 // (e.K * e.T)), e.b)))


def elements(route: str, e: Extent) -> int:
    """Elements of the temporaries of a route."""
    R = e.K * e.b
    o, i = tile(e)
    return {
        "product": R * R + e.b * e.b,
        "pairwise": pairs(e) * e.T * e.b * e.T * (e.K * e.K + 1),
        "rows": R * o * i,
        "shared": e.T * e.T + max(e.T * e.o, chunk()),
    }[route]


def seconds(route: str, e: Extent, known: Constants) -> float:
    """Estimated time of a route; a function of its arguments and the chunk alone."""
    R = e.K * e.b
    by = "onednn" if known.onednn_flops > 0 else "torch"

    def batch(times: float, M: float, N: float, K: float) -> float:
        slow = math.prod(1 + known.half / max(1, size) for size in (M, N, K))
        return 2 * M * N * K * times * slow / known.flops

    def product(M: float, N: float, K: float, times: float = 1) -> float:
        if by == "onednn" and pays(M, K, N):
            return times * (2 * M * N * K / known.onednn_flops + known.onednn_call)
        return batch(times, M, N, K)

    def gram(d: float) -> float:
        step = min(block_size(R, by), R)
        return product(step, R, d, R / step) * (1 + step / R) / 2

    moved: float
    if route == "product":
        work, moved, calls = product(e.b, e.b, e.i) + gram(e.o), 3 * R * R, 4.0
    elif route == "pairwise":
        step = pairs(e)
        strips = -(-e.b // step)
        share = (1 + 1 / strips) / 2
        M, N = step * e.T, e.b * e.T
        work = strips * share * (product(M, N, e.i) + product(e.K * M, e.K * N, e.o))
        moved, calls = 5 * share * (R * e.T) ** 2, 60 + 15.0 * strips
    elif route == "rows":
        o, i = tile(e)
        chunks = -(-e.o // o) * -(-e.i // i)
        work = chunks * (batch(R, o, i, e.T) + gram(o * i))
        moved, calls = 4 * R * e.i * e.o, 28 + chunks * (6 + 2 * e.K + R / block_size(R, by))
    else:
        work = product(e.T, e.T, e.i) + batch(R, e.T, e.o, e.T) + product(R, R, e.T * e.o)
        moved, calls = e.T**2 + 3 * R * e.T * e.o, 24 + 5 * R * e.T * e.o / chunk()
    return e.g * (work + moved / known.elements + calls * known.call)


def constants_of(device: str, dtype: torch.dtype) -> Constants:
    """Those in force for a type of device and a dtype, without oneDNN's where PyTorch's own products are."""
    return in_force(measured(device, dtype))


def in_force(known: Constants) -> Constants:
    """The constants, without oneDNN's where it is not the library of the products."""
    return known if library() == "onednn" else known._replace(onednn_flops=0.0, onednn_call=0.0)
