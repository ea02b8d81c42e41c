"""IMTL-G: the update with the same projection on every gradient's direction."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation._cosine_weighting import CosineWeighting, UnitGradients
from gramjd.aggregation.solvers.rounding import of_eigenvalues
from gramjd.aggregation.solvers.spectral import on_range, pseudo_inverse_times


class IMTLG(CosineWeighting):
    """`w = v / sum v`, `v = G^+ d`, d the lengths of the gradients: `g_i . J^T w / |g_i|` is the same for all i.

    That is so for independent gradients, for which the weights are exact however different their lengths are; for
    dependent ones `G^+` makes it so in the least squares sense. `w = 0` if `sum v` is zero up to rounding. The sum can
    be negative, and the update then increases every loss: the method as published does that. Cost: one or two
    eigendecompositions, O(m^3), on the device of `G`.

    Table 1: non-conflicting no, linear under scaling no, weighted yes.

    Raises:
        AggregatorError: `G` [m, m] is not square, finite, symmetric and, up to rounding, positive semi-definite.

    Source: Liu et al., Towards impartial multi-task learning (2021), section 3.2.

    >>> import torch
    >>> from gramjd.aggregation import IMTLG
    >>> IMTLG().aggregate(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([0.7500, 0.7500])
    """

    _scale_free = True
    _waits = True  # for the eigendecomposition

    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        m, top = len(cone.norms), cone.norms.amax().clamp_min(1e-300)
        ones = torch.ones_like(cone.norms)
        _, _, kept = on_range(cone.C, eps)
        if bool(kept.all()):
            # Between cosines different lengths do no harm: v = C^-1 1 / d, exactly.
            v = torch.linalg.solve(cone.C, ones) * cone.inverse_norms * top
        else:
            d = cone.norms / top
            v = pseudo_inverse_times(cone.C * torch.outer(d, d), d, eps)
        total = v.sum()
        return torch.where(total.abs() > of_eigenvalues(m, eps) * v.abs().sum(), v / total, 0.0)
