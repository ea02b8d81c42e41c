"""Aggregators that look at nothing but the cosines between gradients and their lengths, in float64."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gramjd.aggregation._check import check_shape
from gramjd.aggregation._look import may_look
from gramjd.aggregation._weighting import Weighting, weights_dtype
from gramjd.aggregation.solvers.scaling import cosines, cosines_unseen
from gramjd.aggregation.solvers.small import SMALL, regular
from gramjd.aggregation.solvers.threads import one_thread_if_small


@dataclass(frozen=True)
class UnitGradients:
    """What a Gramian says: the cosines `C` [m, m], 1 on the diagonal or just above it, and the lengths `norms` [m].

    A gradient of zero has length 0 and is orthogonal to all others.
    """

    C: Tensor
    norms: Tensor
    look: bool  # whether a solver may look at values to stop early, or has to do the same whatever they are
    lift: float = 0.0  # the "just above": what rounding made necessary, and no part of G

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

    # Whether `_weights` makes the host wait for the device in any case, as an eigendecomposition does.
    _waits: ClassVar[bool] = False

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]."""
        m = check_shape(G)
        if not m:
            return G.new_zeros(0, dtype=weights_dtype(G))
        with torch.no_grad(), one_thread_if_small(m, G.device):
            if self._waits or may_look(G.device):
                w = self._weights(_seen(G), torch.finfo(G.dtype).eps)
            else:
                C, norms = cosines_unseen(G)
                w = self._weights(UnitGradients(C, norms, look=False), torch.finfo(G.dtype).eps)
                w = torch.where(C.isfinite().all(), w, torch.nan)
        return w.to(weights_dtype(G))

    @abstractmethod
    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        """The weights [m] in float64, for a Gramian whose entries were rounded to `eps`.

        Without `cone.look` the cosines can be NaN: any weights will do then, but no error.
        """


def _seen(G: Tensor) -> UnitGradients:
    """What `G` says, its values having been looked at."""
    if len(G) <= SMALL and G.device.type == "cpu" and (found := regular(G)) is not None:
        return UnitGradients(torch.from_numpy(found.C), torch.from_numpy(found.norms), True)
    cone = cosines(G)
    return UnitGradients(cone.C, cone.norms, True, cone.lift)
