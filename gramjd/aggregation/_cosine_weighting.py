"""Weightings that look at nothing but the cosines between gradients and their lengths, in float64."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from gramjd.aggregation._check import check_shape
from gramjd.aggregation._weighting import Weighting, weights_dtype
from gramjd.aggregation.solvers.scaling import Cosines, cosines
from gramjd.aggregation.solvers.threads import one_thread_if_small


class CosineWeighting(Weighting):
    """Checks `G`, hands its cosines and lengths to `_weights`, and casts what comes back."""

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]."""
        m = check_shape(G)
        if not m:
            return G.new_zeros(0, dtype=weights_dtype(G))
        with torch.no_grad(), one_thread_if_small(m, G.device):
            w = self._weights(cosines(G), torch.finfo(G.dtype).eps)
        return w.to(G.device, weights_dtype(G))

    @abstractmethod
    def _weights(self, cone: Cosines, eps: float) -> Tensor:
        """The weights [m] in float64, on any device, for a Gramian whose entries were rounded to `eps`."""
