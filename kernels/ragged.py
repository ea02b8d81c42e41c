"""Gram matrix of rows in several factors of one parameter, of which each sums over as many positions as it needs.

    G[r, s] = <J_r, J_s>,    J_r = sum_t c_rt x_rt^T,    r of any factor x [g, b, T, i], c [K, g, b, T, o]

Losses with about as many tokens are one factor, so the rows of one parameter come in several. Two routes:

    rows   J of all factors, some outputs at a time    sum 2 R T i o + 2 (sum R)^2 i o operations per group
    pairs  each factor by itself, and each pair        those of `outer` and of `cross`
"""

from __future__ import annotations

from collections.abc import Sequence

from gramjd.kernels import cross, outer
from gramjd.kernels.cost import Constants, Estimate, Prices, chunk, kept, quickest
from gramjd.kernels.outer import Extent
from gramjd.kernels.symmetric import even

Extents = tuple[Extent, ...]


@kept
def route(extents: Extents, known: Constants) -> str:
    """The quickest route whose temporaries fit (`cost.quickest`).

    Args:
        extents: of the factors, which agree in g, i and o.
        known: constants of the device and the dtype.
    """
    return quickest({name: estimate(name, extents, known) for name in ESTIMATES})


def estimate(name: str, extents: Extents, known: Constants) -> Estimate:
    """What a route takes; a function of its arguments and `cost.chunk()` alone."""
    return ESTIMATES[name](extents, known)


def operations(name: str, extents: Extents, known: Constants) -> int:
    """Multiply-adds of a route."""
    if name == "rows":
        g, i, o = extents[0].g, extents[0].i, extents[0].o
        return g * i * o * (sum(e.K * e.b * e.T for e in extents) + _rows_of(extents) ** 2)
    own = sum(outer.operations(outer.route(e, known), e) for e in extents)
    return own + sum(cross.operations(cross.route(e, e2, known), e, e2) for e, e2 in _pairs(extents))


def _rows_of(extents: Extents) -> int:
    return sum(e.K * e.b for e in extents)


def _pairs(extents: Extents) -> Sequence[tuple[Extent, Extent]]:
    return [(e, e2) for n, e in enumerate(extents) for e2 in extents[n + 1 :]]


def _estimate_rows(extents: Extents, known: Constants) -> Estimate:
    p, (g, _, _, _, i, o), R = Prices(known), extents[0], _rows_of(extents)
    step = even(o, chunk() // max(1, R * i))
    chunks = -(-o // step)
    formed = sum(p.batch(e.K * e.b, step, i, e.T) for e in extents)
    passes = p.passes(5 * R * i * o, chunks * (4 + 6 * len(extents) + p.blocks(R)))
    return Estimate(g * (chunks * (formed + p.gram(R, step * i)) + passes), 2 * R * step * i)


def _estimate_pairs(extents: Extents, known: Constants) -> Estimate:
    own = [outer.estimate(outer.route(e, known), e, known) for e in extents]
    own += [cross.estimate(cross.route(e, e2, known), e, e2, known) for e, e2 in _pairs(extents)]
    return Estimate(sum(one.seconds for one in own), max(one.elements for one in own))


ESTIMATES = {"rows": _estimate_rows, "pairs": _estimate_pairs}
