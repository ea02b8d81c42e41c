"""Sven: the shortest update that takes all losses to zero, to first order."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation._check import as_count, as_gramian, as_number
from gramjd.aggregation._loss_weighting import LossWeighting
from gramjd.aggregation.solvers.spectral import on_range
from gramjd.aggregation.solvers.threads import one_thread_if_small
from gramjd.errors import AggregatorError


class Sven(LossWeighting):
    """`w = G^+ L` for the values `L` [m] of the losses, without the small singular values: `J^T w = J^+ L`.

    A step of rate 1 along it is the shortest one that makes every loss zero to first order, or the nearest thing to
    that when the losses cannot all be. The singular values of `J` are the roots of the eigenvalues of `G`; those below
    `cutoff` times the largest are left out, and so is what rounding cannot tell from zero: for a float32 Gramian what
    is below `7e-4 m^(1/4)` of the largest one, for a float64 one `6e-8 m^(1/2)`. Cost: one eigendecomposition in
    float64, about 10 m^3 operations, on the device of `G`, and the host waits for it.

    **What to hand over as losses.** The method is stated for losses whose best value is zero. Residuals, with their
    signs, are such values too, and with them it is the Gauss-Newton step without damping; with `r^2` it is half of it.

    Properties: non-conflicting no, linear under scaling no, weighted yes.

    Args:
        cutoff: from 0 to below 1, relative to the largest singular value of `J`.
        rank: how many singular values to keep at most, the largest ones; None for all above the cutoff.

    Raises:
        AggregatorError: bad options; no losses, or not m of them; or `G` [m, m] is not square, finite and symmetric.

    Source: Bright-Thonney, Harvey, Lukas and Thaler, Sven: singular value descent as a computationally efficient
    natural gradient method (2026).

    >>> import torch
    >>> from gramjd.aggregation import Sven
    >>> J, L = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.5]]), torch.tensor([1.0, 3.0, 1.0])
    >>> Sven().aggregate(J, L)
    tensor([1., 2.])
    >>> Sven(rank=1).aggregate(J, L)
    tensor([1., 0.])
    """

    _scale_free = False

    def __init__(self, cutoff: float = 1e-6, rank: int | None = None) -> None:
        """Check the options."""
        self._cutoff = as_number(cutoff, "cutoff", "from 0 to below 1", lambda x: 0 <= x < 1)
        self._rank = None if rank is None else as_count(rank, "rank", 1)

    def _weights(self, G: Tensor, losses: Tensor) -> Tensor:
        H, values = as_gramian(G, look=True), losses.reshape(-1).double()
        if not len(H):
            return values
        if not bool(torch.isfinite(values).all()):
            raise AggregatorError(f"the losses must be finite; got {values[~torch.isfinite(values)][0].item()}")
        with one_thread_if_small(len(H), H.device):
            eigenvalues, vectors, keep = on_range(H, torch.finfo(G.dtype).eps)
            keep &= eigenvalues > self._cutoff**2 * eigenvalues[-1]
            if self._rank is not None:
                keep[: -self._rank] = False
            return vectors @ (torch.where(keep, eigenvalues.reciprocal(), 0.0) * (vectors.mT @ values))

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return f"Sven(cutoff={self._cutoff}, rank={self._rank})"
