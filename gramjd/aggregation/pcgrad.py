"""PCGrad: take out of each gradient what conflicts with the others, one at a time, in random order."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation._cosine_weighting import CosineWeighting, UnitGradients
from gramjd.aggregation._stateful import Stateful


class PCGrad(Stateful, CosineWeighting):
    """`w = sum_i w_i`: `w_i` starts as `e_i`; for each j other than i, in random order, if `(G w_i)_j < 0` then
    `w_i[j] -= (G w_i)_j / G_jj`.

    In words: gradient i is projected on the plane orthogonal to each gradient that it conflicts with by then, and the
    results are summed. Later projections can bring earlier conflicts back. For two losses it is twice UPGrad. It
    takes inner products only, so G is enough. Cost: O(m^3), in m - 1 steps for all i together, on the device of `G`
    without synchronising.

    Table 1: non-conflicting no (yes for m <= 2), linear under scaling yes (for the same order), weighted yes.

    Args:
        seed: an int, for orders of its own; a torch.Generator on the CPU; or None for torch's global generator.

    Raises:
        AggregatorError: bad `seed`; or `G` [m, m] is not square, finite, symmetric and, up to rounding, positive
            semi-definite.

    Source: Yu et al., Gradient surgery for multi-task learning (2020), algorithm 1.

    >>> import torch
    >>> from gramjd.aggregation import PCGrad
    >>> PCGrad().aggregate(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
    tensor([0.5000, 1.5000])
    """

    _scale_free = True

    def __init__(self, seed: int | torch.Generator | None = None) -> None:
        """Make the generator, if it is to be one of its own."""
        super().__init__(seed)

    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        order = random_orders(len(cone.norms), self._generator).to(cone.C.device, non_blocking=True)
        return summed(cone.norms, surgery(cone.C, order))

    def __repr__(self) -> str:
        """The call that makes this aggregator (with the seed it started from)."""
        return f"PCGrad(seed={self._seed})"


def random_orders(m: int, generator: torch.Generator | None) -> Tensor:
    """For each i a random order of the indices other than i: [m, m - 1] on the CPU."""
    order = torch.rand(m, max(m - 1, 0), dtype=torch.float64, generator=generator).argsort(1)
    return order + (order >= torch.arange(m)[:, None])


def summed(norms: Tensor, W: Tensor) -> Tensor:
    """`sum_i w_i` [m] for gradients of lengths `norms` [m], from the `w_i` [m, m] of unit ones."""
    n = norms / norms.amax().clamp_min(1e-300)
    return 1 + torch.where(n > 0, (n @ W - n) / n, 0.0)


def surgery(G: Tensor, order: Tensor) -> Tensor:
    """Row i: the `w_i` [m] of gradient i, projected off the gradients `order[i]` one after the other. [m, m].

    >>> import torch
    >>> surgery(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]), torch.tensor([[1], [0]]))
    tensor([[1.0000, 0.5000],
            [1.0000, 1.0000]])
    """
    W, products = torch.eye(len(G), dtype=G.dtype, device=G.device), G.clone()
    lengths = G.diagonal()
    for j in order.mT:
        step = products.gather(1, j[:, None]).clamp_max(0) / lengths[j][:, None]
        W.scatter_add_(1, j[:, None], -step)
        products.addcmul_(G[j], step, value=-1)
    return W
