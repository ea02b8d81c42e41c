"""ConFIG: the direction with the same cosine to every gradient, as long as the gradients reach along it."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation._cosine_weighting import CosineWeighting, UnitGradients
from gramjd.aggregation.solvers.rounding import of_eigenvalues
from gramjd.aggregation.solvers.spectral import on_range


class ConFIG(CosineWeighting):
    """`w = r k / |g|`, `k = C^+ 1`, `r = |g| . C k / 1 . k`, for the cosines `C` between gradients of lengths `|g|`.

    The method is stated on the matrix U of unit gradients: `y = U^+ 1`, then the update
    `(sum_i g_i . y / |y|) y / |y|`. It is a function of G, because U enters only through `C = U U^T`:

        U^+ = U^T (U U^T)^+          so  y     = U^T C^+ 1 = U^T k = J^T (k / |g|),
        |y|^2 = k^T U U^T k                    = k^T C k = 1 . k  (C^+ C C^+ = C^+),
        sum_i g_i . y = sum_i |g_i| (U y)_i    = |g| . C k,

    and with them `w = (|g| . C k / 1 . k) k / |g|`. Gradients of zero get weight 0; `w = 0` if `y` is zero up to
    rounding, as where the unit gradients balance: `U^T 1 = 0`. Cost: one eigendecomposition, O(m^3), on the device of
    `G`; the host waits for it.

    Properties: non-conflicting no (yes for independent gradients), linear under scaling yes, weighted yes.

    Raises:
        AggregatorError: `G` [m, m] is not square, finite, symmetric and, up to rounding, positive semi-definite.

    Source: Liu, Chu and Thuerey, ConFIG: towards conflict-free training of physics informed neural networks (2025),
    equation 2.

    >>> import torch
    >>> from gramjd.aggregation import ConFIG
    >>> ConFIG().aggregate(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([2., 2.])
    """

    _scale_free = True
    _waits = True  # for the eigendecomposition

    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        alive = (cone.norms > 0).double()
        n = cone.norms / cone.norms.amax().clamp_min(1e-300)
        C = cone.C * torch.outer(alive, alive)
        values, vectors, keep = on_range(C, eps)
        along = vectors.mT @ alive
        # How far rounding turns an eigenvector towards the null space, in which all of `alive` can lie.
        turned = of_eigenvalues(len(C), eps) * values[-1] / values * alive.sum().sqrt()
        nothing = ~(keep & (along.abs() > turned)).any()
        k = vectors @ torch.where(keep, along / values, 0.0)
        square = (alive * k).sum()
        scale = torch.where(nothing, 0.0, (n @ (C @ k)) / square)
        return scale * k * torch.where(alive > 0, n.reciprocal(), 0.0)
