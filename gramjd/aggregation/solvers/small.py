"""Few losses, of which the gradients are nothing special: a dozen calls of numpy, which cost a fifth of torch's.

What is unusual (a gradient of zero, an eigenvalue below zero, values that are no Gramian's, a projection that does not
pass its optimality test) is left to the other solvers, which say what is wrong with it, or solve it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gramjd.aggregation._check import asymmetry_limit, underflow
from gramjd.aggregation.solvers import native
from gramjd.aggregation.solvers.rounding import EPS, KNOWN, SINGULAR, room
from gramjd.aggregation.solvers.threads import one_thread

SMALL = 64  # losses, up to which calls cost more than what they compute
Array = NDArray[np.float64]


class Regular(NamedTuple):
    """Cosines `C` [m, m] and lengths `norms` [m], none of them zero."""

    C: Array
    norms: Array


def regular(G: Tensor, ridge: float = 0.0) -> Regular | None:
    """What `scaling.cosines` finds for the same `G` [m, m] and ridge, on a CPU; None where anything is unusual."""
    found = _scaled(G, ridge)
    return found if found is not None and _definite(found.C) else None


def project(G: Tensor, U: Tensor, ridge: float = 0.0) -> Tensor | None:
    """The exact answer of `dual_cone` [r, m], or None where that is not for this module to find."""
    if not (native.serves(len(G)) and len(U)) or (found := _scaled(G, ridge)) is None:
        return None
    C, norms = found
    lower = U.numpy()
    V = lower * norms
    size = V.max(1, keepdims=True)
    if not size.min() > 0:
        return None
    V /= size
    mu = _multipliers(C, V) if _definite(C) else None
    if mu is None and (mu := _on_range(C, V)) is None:
        return None
    mu *= size
    mu /= norms
    mu += lower
    return torch.from_numpy(mu)


def _multipliers(C: Array, V: Array) -> Array | None:
    Q = V @ C
    if Q.min() >= 0:
        return np.zeros_like(V)
    mu, missed = native.exchange(C, Q)
    missed /= V.sum(1) + mu.sum(1)
    return mu if missed.max() <= KNOWN * len(C) * EPS else None


def _on_range(C: Array, V: Array) -> Array | None:
    """The same on a factor with as many columns as the rank of C, where digits are lost otherwise."""
    if native.FACTORED is None:
        return None
    with one_thread(torch.device("cpu")):  # numpy's threads would wait for each other longer than they work
        values, vectors = (found.numpy() for found in torch.linalg.eigh(torch.from_numpy(C)))
    if values[0] < -EPS * len(C) * values[-1]:
        return None
    keep = values > len(C) * EPS * values[-1]
    A = vectors[:, keep] * np.sqrt(values[keep])
    if 2 * A.shape[1] > len(C) and len(V) > 1 and (mu := _balanced(C, A, V)) is not None:
        return mu
    mu, missed = native.nearest(A, V @ A, room(len(C)), V.sum(1))
    if not np.isfinite(missed).all():
        return None
    Y = V @ C + mu @ C
    missed = np.maximum(-Y, Y * (mu > 0)).max(1) / (V.sum(1) + mu.sum(1))
    return mu if missed.max() <= KNOWN * len(C) * EPS else None


def _balanced(C: Array, A: Array, V: Array) -> Array | None:
    """`dual_cone._balanced`: one solution for all rows, where positive multiples of all gradients cancel."""
    one = np.ones((1, len(C)))
    w = 1 + native.nearest(A, one @ A, room(len(C)), one.sum(1)).X
    if not np.abs(w @ C).max() <= 0.5 * KNOWN * len(C) * EPS * w.sum():
        return None
    return np.maximum((V / w).max(1, keepdims=True) * w - V, 0.0)


def _scaled(G: Tensor, ridge: float) -> Regular | None:
    """Cosines and lengths, if `G` is finite, symmetric up to rounding, and no length is zero."""
    with np.errstate(all="ignore"):
        H = G.detach().double().numpy()
        lengths = H.diagonal()
        if ridge:
            lengths = lengths + ridge * lengths.sum()
        if not (lengths.min() > underflow(G.dtype) and lengths.max() < np.inf):
            return None
        norms = np.sqrt(lengths)
        inverse = 1 / norms
        raw = H * inverse[:, None]
        raw *= inverse
        gap = raw - raw.T
        if not np.abs(gap, out=gap).max() <= asymmetry_limit(G.dtype):
            return None
        C = raw + raw.T
        C *= 0.5
        C.reshape(-1)[:: len(C) + 1] = 1.0
        return Regular(C, norms)


def _definite(C: Array) -> bool:
    """Returns True if the least pivot is no rounding."""
    try:
        return bool(np.linalg.cholesky(C).diagonal().min() ** 2 >= SINGULAR)
    except np.linalg.LinAlgError:
        return False
