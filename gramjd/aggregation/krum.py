"""Krum: the gradients that lie closest to most others, for workers of which some may lie."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation._check import as_count
from gramjd.aggregation._cosine_weighting import CosineWeighting, UnitGradients
from gramjd.errors import AggregatorError


class Krum(CosineWeighting):
    """`w_i = 1 / selected` for the gradients of lowest score, the sum of squared distances to the nearest others.

    `|g_i - g_j|^2 = G_ii + G_jj - 2 G_ij`; the score of i adds the `m - byzantine - 2` smallest of them. Equal scores
    go to the lower index. Distances below about `sqrt(eps)` of the gradients' length cannot be told apart through
    a Gramian. Cost: O(m^2 log m), on the device of `G`.

    Properties: non-conflicting no, linear under scaling no, weighted yes.

    Args:
        byzantine: how many gradients may be anything at all, 0 or more.
        selected: how many to average, 1 or more (more than one is Multi-Krum).

    Raises:
        AggregatorError: bad options; fewer than `byzantine + 3` or than `selected` gradients; or `G` [m, m] is not
            square, finite, symmetric and, up to rounding, positive semi-definite.

    Source: Blanchard, El Mhamdi, Guerraoui and Stainer, Machine learning with adversaries: Byzantine tolerant gradient
    descent (2017), section 4.

    >>> import torch
    >>> from gramjd.aggregation import Krum
    >>> Krum(byzantine=1).aggregate(torch.tensor([[1.0, 0.0], [1.1, 0.0], [1.3, 0.1], [-90.0, 9.0]]))
    tensor([1., 0.])
    """

    _scale_free = True

    def __init__(self, byzantine: int, selected: int = 1) -> None:
        """Check the counts; m is checked in each call."""
        self._byzantine, self._selected = as_count(byzantine, "byzantine", 0), as_count(selected, "selected", 1)

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]."""
        least = max(self._byzantine + 3, self._selected)
        if isinstance(G, Tensor) and G.ndim == 2 and G.shape[0] == G.shape[1] < least:
            raise AggregatorError(f"{self!r} needs at least {least} gradients; the Gramian is {len(G)} x {len(G)}")
        return super().__call__(G)

    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        n = cone.norms / cone.norms.amax().clamp_min(1e-300)
        # (|a| - |b|)^2 + 2 |a| |b| (1 - cos): no difference of large numbers, but in the cosine.
        distances = (n[:, None] - n).square() + 2 * torch.outer(n, n) * (1 - cone.C)
        distances.fill_diagonal_(torch.inf)
        scores = distances.sort(1).values[:, : len(n) - self._byzantine - 2].sum(1)
        chosen = scores.argsort(stable=True)[: self._selected]
        return torch.zeros_like(n).index_fill_(0, chosen, 1 / self._selected)

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return f"Krum(byzantine={self._byzantine}, selected={self._selected})"
