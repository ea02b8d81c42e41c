"""Aligned-MTL: the mean of gradients made orthogonal and equally long."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation._cosine_weighting import CosineWeighting, UnitGradients
from gramjd.aggregation.solvers.spectral import on_range
from gramjd.errors import AggregatorError

_SCALES = ("min", "median", "rmse")


class AlignedMTL(CosineWeighting):
    """`w = s V S^+ V^T 1 / m` for `G = V S^2 V^T`: all singular values of the gradients' matrix are set to one s.

    Directions in which the gradients barely move count as much as the others; those in which they do not move at all
    (singular values that are zero up to the rounding of `G`) not at all. `w = 0` if all gradients are zero. Cost: one
    eigendecomposition, O(m^3), on the device of `G`; the host waits for it.

    Table 1: non-conflicting no, linear under scaling no, weighted yes.

    Args:
        scale: s is the smallest of the singular values that are not zero ("min", the default), their median ("median",
            the lower of the middle two), or the root of the mean of their squares ("rmse").

    Raises:
        AggregatorError: bad `scale`; or `G` [m, m] is not square, finite, symmetric and, up to rounding, positive
            semi-definite.

    Source: Senushkin, Patakin, Kuznetsov and Konushin, Independent component alignment for multi-task learning (2023),
    algorithm 1.

    >>> import torch
    >>> from gramjd.aggregation import AlignedMTL
    >>> AlignedMTL().aggregate(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([0.5000, 0.5000])
    """

    _scale_free = True
    _waits = True  # for the eigendecomposition

    def __init__(self, scale: str = "min") -> None:
        """Check the name of the scale."""
        if scale not in _SCALES:
            raise AggregatorError(f"scale must be one of {', '.join(map(repr, _SCALES))}; got {scale!r}")
        self._scale = scale

    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        n = cone.norms / cone.norms.amax().clamp_min(1e-300)
        values, vectors, keep = on_range(cone.C * torch.outer(n, n), eps)
        roots = torch.where(keep, values, 0.0).sqrt()
        inverse = torch.where(keep, roots.reciprocal(), 0.0)
        s = self._of(roots, keep.sum())
        return s * (vectors @ (inverse * vectors.mean(0)))

    def _of(self, roots: Tensor, rank: Tensor) -> Tensor:
        """The one value that replaces the last `rank` (not zero) of the ascending `roots`."""
        if self._scale == "rmse":
            return (roots.square().sum() / rank.clamp_min(1)).sqrt()
        first = len(roots) - rank
        at = first if self._scale == "min" else first + (rank - 1) // 2
        return roots[at.clamp_max(len(roots) - 1)]

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return f"AlignedMTL(scale={self._scale!r})"
