"""Nash-MTL: the bargain in which every loss gains in proportion."""

from __future__ import annotations

from torch import Tensor

from gramjd.aggregation._cosine_weighting import CosineWeighting, UnitGradients
from gramjd.aggregation.solvers.nash import bargain


class NashMTL(CosineWeighting):
    """`w > 0` with `G w = 1 / w`, componentwise: `J^T w` maximises the product of the gains `g_i . y` in a ball.

    `J^T w` always has the length `sqrt(m)`, whatever the length of the gradients, and a gradient's length changes
    nothing about its direction: scale the learning rate accordingly. A gradient of zero gets weight 0 and the others
    bargain without it; at a Pareto-stationary point (up to the rounding of `G`) there is no solution and `w = 0`.
    The equation itself is solved, by a primal-dual Newton method, and not the sequence of approximations of the
    published code: O(m^3) per step, about ten steps. Each `(G w)_i w_i` is 1 to 1e-9, or exact as
    `gramjd.aggregation.solvers` defines it.

    Table 1: non-conflicting yes, linear under scaling no, weighted yes.

    Raises:
        AggregatorError: `G` [m, m] is not square, finite, symmetric and, up to rounding, positive semi-definite.

    Source: Navon et al., Multi-task learning as a bargaining game (2022), claim 3.1.

    >>> import torch
    >>> from gramjd.aggregation import NashMTL
    >>> NashMTL()(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    tensor([0.5000, 1.0000])
    """

    _scale_free = False

    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        return bargain(cone.C, cone.norms, 1.0, eps, cone.look, cone.lift)
