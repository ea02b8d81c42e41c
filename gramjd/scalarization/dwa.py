"""DWA, dynamic weight average: more weight for losses that fall slowly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gramjd.scalarization._scalarization import Scalarization, as_number, positive


class DWA(Scalarization):
    """`sum_i w_i L_i` with `w = m softmax(r / T)`, `r_i = L_i(t-1) / L_i(t-2)`; all 1 in the first two epochs.

    `L_i(t)` is the mean of loss i over epoch t. Call `end_epoch()` after each.

    Args:
        temperature: the `T`, above 0.

    Raises:
        InputError: options that are not allowed. LossError at a call: a loss that is not above 0.

    Source: Liu, Johns and Davison, End-to-end multi-task learning with attention (2019), equation 7.

    >>> weighting = DWA()
    >>> for epoch in ([1.0, 1.0], [0.5, 1.0]):
    ...     _ = weighting(torch.tensor(epoch, requires_grad=True))
    ...     weighting.end_epoch()
    >>> weighting.weights(2)
    tensor([0.8756, 1.1244])
    """

    def __init__(self, temperature: float = 2.0) -> None:
        """Check the option; there are no epochs yet."""
        super().__init__()
        self._temperature = as_number(temperature, "temperature", "finite and above 0", lambda x: 0 < x < math.inf)

    def _scalar(self, losses: Tensor) -> Tensor:
        old = self._recall("sum", positive(losses, "DWA"))
        now = losses.detach().float()
        weights = self.weights(len(losses)).to(losses.device, losses.dtype)
        self._kept["sum"] = now if old is None else old + now
        self._kept["count"] = self._kept.get("count", torch.zeros(1)) + 1
        return (weights * losses).sum()

    def weights(self, m: int) -> Tensor:
        """The weights [m] of this epoch."""
        means = self._kept.get("means")  # [epochs, m], the last two
        if means is None or len(means) < 2:
            return torch.ones(m)
        return m * (means[1] / means[0] / self._temperature).softmax(0)

    def end_epoch(self) -> None:
        """Take the mean of the losses of this epoch as its loss."""
        total, count = self._kept.pop("sum", None), self._kept.pop("count", None)
        if total is None or count is None:
            return
        mean, old = (total.cpu() / count)[None], self._kept.get("means")
        self._kept["means"] = mean if old is None else torch.cat([old, mean])[-2:]
