"""DualProj: project the mean gradient so that it conflicts with no loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gramjd.aggregation._check import as_vector, check_length, check_shape
from gramjd.aggregation._weighting import Weighting, weights_dtype
from gramjd.aggregation.solvers import dual_cone


class DualProj(Weighting):
    """`w in argmin {v^T G v : v >= u}`, `u = 1/m`: `J^T w` is the mean gradient projected on the dual cone.

    To first order the update increases no loss. One problem of size m where UPGrad has m of them, but long gradients
    decide alone: a short one that conflicts with the mean only just stops conflicting. Cost: O(m^3), a few
    rounds. Exact, see `gramjd.aggregation.solvers`; for a singular `G` the weights are not unique, `J^T w` is.

    Table 1: non-conflicting yes, linear under scaling no, weighted yes.

    Args:
        preference: the positive `u`, [m], one number per loss; None for `1/m`. It is used as it stands.

    Raises:
        AggregatorError: bad `preference`; or `G` [m, m] is not square, finite, symmetric and, up to rounding, positive
            semi-definite.

    Source: Lopez-Paz and Ranzato, Gradient episodic memory for continual learning (2017), equation 11; the name is
    that of Quinton and Rey, Jacobian Descent for Multi-Objective Optimization (2024).

    >>> import torch
    >>> from gramjd.aggregation import DualProj
    >>> DualProj().aggregate(torch.tensor([[1.0, 0.0], [-3.0, 1.0]]))
    tensor([0.0000, 0.5000])
    """

    _scale_free = True
    _per_loss = ("_preference",)

    def __init__(self, preference: Sequence[float] | Tensor | None = None) -> None:
        """Check the preference; nothing depends on m until the first call."""
        self._preference = None if preference is None else as_vector(preference, "preference", positive=True)

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]."""
        m = check_shape(G)
        if self._preference is None:
            u = G.new_full((m,), 1 / max(m, 1), dtype=torch.float64)
        else:
            check_length(self._preference, "preference", m)
            u = self._preference = self._preference.to(G.device)
        return dual_cone(G, u[None])[0].to(weights_dtype(G))

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return "DualProj()" if self._preference is None else f"DualProj(preference={self._preference.tolist()})"
