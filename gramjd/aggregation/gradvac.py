"""GradVac: turn gradients towards each other until their cosines are what they usually are."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from gramjd.aggregation._check import as_number
from gramjd.aggregation._cosine_weighting import CosineWeighting, UnitGradients
from gramjd.aggregation._stateful import Stateful
from gramjd.aggregation.pcgrad import random_orders, summed


class GradVac(Stateful, CosineWeighting):
    """`w = sum_i w_i`: `w_i` starts as `e_i`; for each j other than i, in random order, if `a`, the cosine between
    `J^T w_i` and gradient j, is below its target `t_ij`, then
    `w_i[j] += |J^T w_i| (t sqrt(1 - a^2) - a sqrt(1 - t^2)) / (|g_j| sqrt(1 - t^2))`, which makes it the target;
    in either case `t_ij` becomes `(1 - beta) t_ij + beta a`.

    The targets start at zero (the first call with `beta = 0` is PCGrad) and stay from call to call: the number of
    losses and their order must too, until `reset()`. All of it takes inner products only. A gradient of zero changes
    nothing. Cost: O(m^3), in m - 1 steps for all i together, on the device of `G`.

    Properties: non-conflicting no, linear under scaling yes (for the same order and targets), weighted yes.

    Args:
        beta: how fast the targets follow, 0 to 1.
        seed: an int, for orders of its own; a torch.Generator on the CPU; or None for torch's global generator.

    Raises:
        AggregatorError: bad options; another number of losses than before; or `G` [m, m] is not square, finite,
            symmetric and, up to rounding, positive semi-definite.

    Source: Wang, Tsvetkov, Firat and Cao, Gradient vaccine (2021), algorithm 1.

    >>> import torch
    >>> from gramjd.aggregation import GradVac
    >>> GradVac(beta=0.0).aggregate(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
    tensor([0.5000, 1.5000])
    """

    _scale_free = True
    _names = ("targets",)
    _aligned: ClassVar = {"targets": "pairs"}

    def __init__(self, beta: float = 0.01, seed: int | torch.Generator | None = None) -> None:
        """Check the options; there are no targets yet."""
        super().__init__(seed)
        self._beta = as_number(beta, "beta", "from 0 to 1", lambda x: 0 <= x <= 1)

    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        m = len(cone.norms)
        kept = self._recall("targets", m, cone.C.device)
        targets = torch.zeros_like(cone.C) if kept is None else kept
        order = random_orders(m, self._generator).to(cone.C.device, non_blocking=True)
        X, new = vaccinate(cone.C, order, targets, self._beta)
        self._keep("targets", new, targets, cone.C)
        return summed(cone.norms, X)

    def __repr__(self) -> str:
        """The call that makes this aggregator (with the seed it started from, without targets)."""
        return f"GradVac(beta={self._beta}, seed={self._seed})"


def vaccinate(C: Tensor, order: Tensor, targets: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Row i: the `w_i` [m] of unit gradient i, after the gradients `order[i]`; and the new targets. Both [m, m]."""
    W, products, targets = torch.eye(len(C), dtype=C.dtype, device=C.device), C.clone(), targets.clone()
    noise = 16 * len(C) * torch.finfo(C.dtype).eps
    for j in order.mT:
        at = j[:, None]
        length = (W * products).sum(1).clamp_min(0).sqrt()
        # Once a gradient has cancelled there is no angle left to turn.
        some = length.square() > noise * W.abs().sum(1).square()
        a = torch.where(some, products.gather(1, at)[:, 0] / length, 0.0).clamp(-1, 1)
        t = targets.gather(1, at)[:, 0]
        sine = (1 - t * t).clamp_min(0).sqrt()
        wanted = length * (t * (1 - a * a).sqrt() - a * sine) / sine
        step = torch.where(some & (a < t) & (sine > noise), wanted, 0.0)[:, None]
        targets.scatter_(1, at, ((1 - beta) * t + beta * a)[:, None])
        W.scatter_add_(1, at, step)
        products.addcmul_(C[j], step)
    return W, targets
