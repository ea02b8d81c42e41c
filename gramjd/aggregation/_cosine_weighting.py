"""Weightings that look at nothing but the cosines between gradients and their lengths, in float64."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from gramjd.aggregation._check import check_shape
from gramjd.aggregation._weighting import Weighting, weights_dtype
from gramjd.aggregation.solvers.scaling import cosines, cosines_unseen
from gramjd.aggregation.solvers.threads import one_thread_if_small


@dataclass(frozen=True)
class UnitGradients:
    """What a Gramian says: the cosines `C` [m, m], 1 on the diagonal or just above it, and the lengths `norms` [m].

    A gradient of zero has length 0 and is orthogonal to all others.
    """

    C: Tensor
    norms: Tensor
    look: bool  # whether a solver may look at values to stop early, or has to do the same whatever they are

    @property
    def inverse_norms(self) -> Tensor:
        """`1 / norms`, and 0 for a gradient that is zero: no multiple of it helps anybody."""
        return torch.where(self.norms > 0, self.norms.reciprocal(), 0.0)

    @property
    def method(self) -> str:
        """The name that `dual_cone` has for it."""
        return "adaptive" if self.look else "fixed"


class CosineWeighting(Weighting):
    """Checks `G`, hands its cosines and lengths to `_weights`, and casts what comes back."""

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]."""
        m = check_shape(G)
        if not m:
            return G.new_zeros(0, dtype=weights_dtype(G))
        eps = torch.finfo(G.dtype).eps
        with torch.no_grad(), one_thread_if_small(m, G.device):
            w = self._seen(G, eps) if may_look(G.device) else self._unseen(G, eps)
        return w.to(weights_dtype(G))

    def _seen(self, G: Tensor, eps: float) -> Tensor:
        cone = cosines(G)
        return self._weights(UnitGradients(cone.C, cone.norms, look=True), eps)

    def _unseen(self, G: Tensor, eps: float) -> Tensor:
        C, norms = cosines_unseen(G)
        good = C.isfinite().all()
        # Something that can be solved takes the place of what cannot: some of torch's functions raise at a NaN.
        C = torch.where(good, C, torch.eye(len(C), dtype=C.dtype, device=C.device))
        w = self._weights(UnitGradients(C, torch.where(good, norms, 1.0), look=False), eps)
        return torch.where(good, w, torch.nan)

    @abstractmethod
    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        """The weights [m] in float64, for a Gramian whose entries were rounded to `eps`."""


def may_look(device: torch.device) -> bool:
    """Whether reading a value costs nothing. On a GPU the host would wait for it, and no CUDA graph could be recorded.

    Where it is False, weights come from a fixed sequence of operations, and what is no Gramian gets NaN, not an error.
    """
    return device.type == "cpu"
