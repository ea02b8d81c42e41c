"""ExcessMTL: more weight for the losses that still have furthest to go."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from gramjd.aggregation._check import as_count, as_gramian, as_number
from gramjd.aggregation._stateful import Stateful
from gramjd.aggregation._weighting import Weighting, weights_dtype


class ExcessMTL(Stateful, Weighting):
    """`w_i <- w_i exp(rate e_i / b_i) / sum`, `e_i = G_ii / sqrt(S_i)`, `S_i` the sum of all `G_ii` so far.

    `e_i` estimates how far loss i is above its best value (its excess risk), up to a factor: a Newton step gains
    `g^T H^-1 g / 2`, with a curvature `H` guessed as AdaGrad does. The published method guesses one curvature per
    parameter, which takes the rows of J and as much memory again, kept for good. **This one guesses one curvature per
    loss**, `H_i = sqrt(S_i)` times the identity, and so needs the diagonal of G only. The two agree where the squared
    gradients of a loss are spread over the parameters in proportion to what they were before (for one parameter:
    always); elsewhere this is the variant with AdaGrad's scalar step size. The losses' own values do not enter: the
    best value is not known.

    `b_i`, the mean of `e_i` over the first `warmup` calls, takes out the units of loss i: scaling it changes nothing.
    During them `w = 1/m`. (The published code takes the first call as `b`, but uses `e` there as it stands.) A loss
    without gradient in these calls takes its first `e_i` above zero for `b_i`. Cost: O(m^2) for checking G.

    Properties: non-conflicting no, linear under scaling no, weighted yes.

    Args:
        rate: of the weights, above 0.
        warmup: calls that set `b`, 1 or more; the paper takes three epochs.

    Raises:
        AggregatorError: bad options; another number of losses than before; or `G` is not square, finite and symmetric.

    Source: He et al., Robust multi-task learning with excess risks (2024), equations 6, 7 and 9 and section 3.2.

    >>> import torch
    >>> from gramjd.aggregation import ExcessMTL
    >>> aggregator = ExcessMTL()
    >>> aggregator(torch.diag(torch.tensor([1.0, 9.0])))
    tensor([0.5000, 0.5000])
    >>> aggregator(torch.diag(torch.tensor([1.0, 0.0])))
    tensor([0.6698, 0.3302])
    """

    _scale_free = False
    _names = ("log_weights", "squares", "baseline", "calls")
    _aligned: ClassVar = {"log_weights": "log share", "squares": "each", "baseline": "each", "calls": "each"}

    def __init__(self, rate: float = 1.0, warmup: int = 1) -> None:
        """Check the options; everything else starts at the first call."""
        super().__init__()
        self._rate = as_number(rate, "rate", "that is finite and above 0", lambda x: 0 < x < math.inf)
        self._warmup = as_count(warmup, "warmup", 1)

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]."""
        lengths = as_gramian(G).diagonal().clamp_min(0)
        old = [self._recall(name, len(lengths), lengths.device) for name in self._names]
        start = [torch.zeros_like(lengths) if kept is None else kept for kept in old]
        logs, squares, baseline, calls = start
        squares = squares + lengths
        excess = torch.where(squares > 0, lengths / squares.sqrt(), 0.0)
        warming = calls < self._warmup
        mean = baseline + (excess - baseline) / (calls + 1)
        baseline = torch.where(warming, mean, torch.where(baseline > 0, baseline, excess))
        ratio = torch.where(baseline > 0, excess / baseline, 0.0)
        # In logarithms: no weight can overflow, and one that has vanished can come back.
        logs = torch.where(warming, logs, (logs + self._rate * ratio).log_softmax(0))
        for name, new, before in zip(self._names, (logs, squares, baseline, calls + 1), start, strict=True):
            self._keep(name, new, before, lengths)
        w = torch.where(lengths.isnan().any(), torch.nan, logs.softmax(0))
        return w.to(weights_dtype(G))

    def __repr__(self) -> str:
        """The call that makes this aggregator (without what it has seen)."""
        return f"ExcessMTL(rate={self._rate}, warmup={self._warmup})"
