"""MGDA: the shortest convex combination of the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation._cosine_weighting import CosineWeighting, UnitGradients
from gramjd.aggregation.solvers.simplex import nearest_to_zero


class MGDA(CosineWeighting):
    """`w in argmin {v^T G v : v >= 0, sum v = 1}`: the point of the gradients' convex hull that is nearest to zero.

    Every loss decreases at the same rate or faster, `G w >= w^T G w`; the shortest gradients decide, and the update is
    zero as soon as one gradient is (its loss then gets all of the weight, or several such share it evenly).
    The active set is found exactly (see `gramjd.aggregation.solvers`), without Frank-Wolfe's tail: O(m^3) per round, a
    few rounds. For a singular `G` the
    weights are not unique, `J^T w` is.

    Table 1: non-conflicting yes, linear under scaling no, weighted yes.

    Raises:
        AggregatorError: `G` [m, m] is not square, finite, symmetric and, up to rounding, positive semi-definite.

    Source: Desideri, Multiple-gradient descent algorithm (MGDA) for multiobjective optimization (2012); Sener and
    Koltun, Multi-task learning as multi-objective optimization (2018), equation 3.

    >>> import torch
    >>> from gramjd.aggregation import MGDA
    >>> MGDA().aggregate(torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.5, 0.5]]))
    tensor([0.5000, 0.5000])
    """

    _scale_free = True

    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        norms, idle = cone.norms, cone.norms == 0
        shortest = torch.where(idle, torch.inf, norms).amin()
        d = torch.where(idle, 0.0, shortest / norms)
        return torch.where(idle.any(), idle.double() / idle.sum(), nearest_to_zero(cone.C, d, cone.look) * d)
