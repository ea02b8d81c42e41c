"""Few losses, of which the gradients are nothing special: a dozen calls of numpy, which cost a fifth of torch's.

What is not regular (a gradient of zero, cosines close to singular, values that are no Gramian's, a projection that
does not pass its optimality test) is left to the other solvers, which say what is wrong with it, or solve it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gramjd.aggregation._check import asymmetry_limit, underflow
from gramjd.aggregation.solvers import native
from gramjd.aggregation.solvers.rounding import EPS, KNOWN, SINGULAR

SMALL = 64  # losses, up to which calls cost more than what they compute
Array = NDArray[np.float64]


class Regular(NamedTuple):
    """Cosines `C` [m, m] whose least pivot is no rounding, and lengths `norms` [m], none of them zero."""

    C: Array
    norms: Array


def regular(G: Tensor, ridge: float = 0.0) -> Regular | None:
    """What `scaling.cosines` finds for the same `G` [m, m] and ridge, on a CPU; None where anything is unusual."""
    with np.errstate(all="ignore"):
        H = G.detach().double().numpy()
        m = len(H)
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
        C.reshape(-1)[:: m + 1] = 1.0
        try:
            pivots = np.linalg.cholesky(C).diagonal()
        except np.linalg.LinAlgError:
            return None
        return Regular(C, norms) if pivots.min() ** 2 >= SINGULAR else None


def project(G: Tensor, U: Tensor, ridge: float = 0.0) -> Tensor | None:
    """The exact answer of `dual_cone` [r, m], or None where that is not for this module to find."""
    if not (native.serves(len(G)) and len(U)) or (found := regular(G, ridge)) is None:
        return None
    C, norms = found
    lower = U.numpy()
    V = lower * norms
    size = V.max(1, keepdims=True)
    if not size.min() > 0:
        return None
    V /= size
    Q = V @ C
    if Q.min() >= 0:
        return U.clone()
    mu, missed = native.exchange(C, Q)
    missed /= V.sum(1) + mu.sum(1)
    if not missed.max() <= KNOWN * len(C) * EPS:
        return None
    mu *= size
    mu /= norms
    mu += lower
    return torch.from_numpy(mu)
