"""What all weightings share: a callable from a Gramian to weights, usable on a Jacobian for study."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from gramjd.errors import AggregatorError


class Weighting(ABC):
    """A map from the Gramian `G = J J^T`, [m, m], to the weights `w`, [m], of the update `J^T w`."""

    @abstractmethod
    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m], on its device; in its dtype, or float32 for a 16-bit `G`."""

    def aggregate(self, J: Tensor) -> Tensor:
        """`J^T W(J J^T)`, [n], for a Jacobian `J` [m, n]: for study, and for checking against the definition.

        Raises:
            AggregatorError: `J` is no real floating-point matrix, or what the weighting itself raises.
        """
        if not isinstance(J, Tensor) or J.ndim != 2 or not J.is_floating_point():
            got = f"shape {list(J.shape)}, {J.dtype}" if isinstance(J, Tensor) else type(J).__name__
            raise AggregatorError(f"the Jacobian must be a real floating-point [m, n] tensor; got {got}")
        return J.mT @ self(J @ J.mT).to(J.dtype)

    def __repr__(self) -> str:
        """The call that makes this weighting."""
        return f"{type(self).__name__}()"


def weights_dtype(G: Tensor) -> torch.dtype:
    """The dtype of weights for `G`: its own, but never a 16-bit one, which cannot hold `w >= u`."""
    return G.dtype if G.dtype in (torch.float32, torch.float64) else torch.float32
