"""A Gramian with unit diagonal: the cosines between the gradients, which know nothing of their sizes.

Every solver here works on cosines in float64. Scaling row and column i of G by 1 / |g_i| changes no projection,
makes absolute tolerances meaningful, and is what first-order methods need in order to converge at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gramjd.aggregation._check import STRAY, asymmetry_limit, explain_bad_values, underflow
from gramjd.aggregation.solvers.rounding import SINGULAR
from gramjd.errors import AggregatorError

# A negative eigenvalue beyond this part of the largest one is no rounding, not even in bfloat16.
_INDEFINITE = 0.05
_LADDER = tuple(_INDEFINITE * 4.0**-k for k in range(24))


@dataclass(frozen=True)
class Cosines:
    """`C` [m, m], positive semi-definite with `G = diag(norms) C diag(norms)`, and what the solvers ask about it."""

    C: Tensor
    norms: Tensor
    penalty: float  # that suits splitting
    typical: float  # geometric mean of the eigenvalues, held away from zero; 1 for orthogonal gradients
    factor: Tensor | None  # Cholesky's, or None where C is singular, or close to it
    lift: float = 0.0  # what was added to the diagonal, as rounding had left an eigenvalue below zero

    @property
    def inverse_norms(self) -> Tensor:
        """`1 / norms`, and 0 for a gradient that is zero: no multiple of it helps anybody."""
        return _reciprocal(self.norms)


def cosines(G: Tensor, ridge: float = 0.0) -> Cosines:
    """Check the values of `G` [m, m] and scale it, reading the device once (twice when `G` is close to singular).

    Rounding can leave `G` with slightly negative eigenvalues. The cosines then get the smallest multiple of the
    identity that lifts them to zero, which is no more than the noise that is in them already.

    Args:
        G: [m, m].
        ridge: added to its diagonal, in units of its trace. What the entries were rounded to is judged by G's dtype.

    Raises:
        AggregatorError: `G` is not finite, not symmetric, or has eigenvalues below zero that no rounding explains.
    """
    H = _with_ridge(G, ridge)
    lengths = H.diagonal()
    norms = torch.where(lengths > underflow(G.dtype), lengths, 0.0).sqrt()
    inverse = _reciprocal(norms)
    raw = H * inverse[:, None] * inverse
    C = (raw + raw.mT).mul_(0.5)
    C.fill_diagonal_(1.0)
    L, info = torch.linalg.cholesky_ex(C)
    pivots = L.diagonal().square()
    asymmetry = (raw - raw.mT).abs().amax()
    facts = torch.stack([asymmetry, norms.amin(), info.double(), pivots.amin(), *_penalty(C, pivots)])
    asymmetry_, shortest, failed, pivot, penalty, typical = facts.tolist()
    if not (asymmetry_ <= asymmetry_limit(G.dtype) and (shortest > 0 or float(_stray(H, norms, G.dtype)) <= STRAY)):
        raise explain_bad_values(G.detach(), norms)
    if not failed and pivot >= SINGULAR:
        return Cosines(C, norms, penalty, typical, L)
    return _repaired(C, norms)


def cosines_unseen(G: Tensor, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cosines [m, m] and norms [m] of `G`, without reading the device: all NaN where `cosines` would raise.

    Whether rounding left `G` indefinite is tried out on a ladder of multiples of the identity, the least that works
    is added.
    """
    H = _with_ridge(G, ridge)
    lengths = H.diagonal()
    norms = torch.where(lengths > underflow(G.dtype), lengths, 0.0).sqrt()
    inverse = _reciprocal(norms)
    raw = H * inverse[:, None] * inverse
    C = (raw + raw.mT) * 0.5
    eye = torch.eye(len(H), dtype=H.dtype, device=H.device)
    C = torch.where(eye > 0, 1.0, C)
    stray = _stray(H, norms, G.dtype)
    good = H.isfinite().all() & ((raw - raw.mT).abs().amax() <= asymmetry_limit(G.dtype)) & (stray <= STRAY)
    shift = torch.full_like(lengths[0], torch.nan)
    for candidate in (*_LADDER, 0.0):
        _, failed = torch.linalg.cholesky_ex(C + (candidate * len(H)) * eye)
        shift = torch.where(failed > 0, shift, candidate * len(H))
    return torch.where(good, C + shift * eye, torch.nan), norms


def _with_ridge(G: Tensor, ridge: float) -> Tensor:
    H = G.detach().double()
    return H + torch.diag((ridge * H.diagonal().sum()).expand(len(H))) if ridge else H


def _stray(H: Tensor, norms: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest entry in a row without length, relative to the largest squared norm.

    What an underflow explains is left out: `|G_ij| <= |g_i| |g_j|` with `|g_i|^2` too small to be seen.
    """
    lengths = H.diagonal()
    hidden = (lengths.clamp_min(underflow(dtype)) * underflow(dtype)).sqrt()
    excess = (H.abs() - hidden).amax(1).clamp_min(0)
    excess = torch.where(torch.isnan(H).any(1), torch.nan, excess)
    return torch.where(norms > 0, 0.0, excess).amax() / lengths.amax().clamp_min(1e-300)


def _repaired(C: Tensor, norms: Tensor) -> Cosines:
    eigenvalues = torch.linalg.eigvalsh(C)
    low, high, penalty, typical = torch.stack([eigenvalues[0], eigenvalues[-1], *_penalty(C, eigenvalues)]).tolist()
    if low < -_INDEFINITE * high:
        raise AggregatorError(
            f"the Gramian must be positive semi-definite, as J J^T is; the cosines between its rows have an eigenvalue"
            f" of {low:.3g} beside a largest one of {high:.3g}, more than rounding explains. Pass J J^T"
        )
    lift = max(-1.01 * low, 0.0)
    if lift:
        C.diagonal().add_(lift)
    return Cosines(C, norms, penalty, typical, None, lift)


def _penalty(C: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """`penalty` and `typical` of C, from its pivots or eigenvalues `spectrum` [m].

    The root of their product is the best penalty where all constraints bind. The smallest pivot and the Frobenius
    norm overrate both, by a factor of four to five together on the Gramians of networks.
    """
    extremes = 0.45 * (spectrum.amin().clamp_min(0) * torch.linalg.matrix_norm(C)).sqrt()
    typical = spectrum.clamp_min(5e-2).log().mean().exp()
    return torch.maximum(extremes.clamp_max(1.0), typical), typical


def _reciprocal(x: Tensor) -> Tensor:
    return torch.where(x > 0, x.reciprocal(), 0.0)
