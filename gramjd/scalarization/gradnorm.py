"""GradNorm: weights under which the gradients of all losses have lengths that fit the losses' progress."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gramjd.errors import InputError
from gramjd.gramians import gradient_norms
from gramjd.losses import Inputs
from gramjd.scalarization._scalarization import Scalarization, as_number, positive


class GradNorm(Scalarization):
    """`sum_i w_i L_i`; then `w` goes a step down `sum_i |w_i |g_i| - mean_j(w_j |g_j|) r_i^alpha|`, and is scaled to
    add up to m.

    `g_i` is the gradient of loss i by the shared weights, `r_i` its relative rate, `(L_i / L_i(0)) / mean_j(L_j /
    L_j(0))`. The target counts as a constant, so the derivative by `w_i` is `sign(w_i |g_i| - target_i) |g_i|`. A
    weight that would be negative becomes 0. The call uses the weights as they were before that step. The norms of all
    losses come from one walk.

    Args:
        shared: the parameters that gradients are compared by, or a module: the paper takes the last shared layer.
        alpha: how strongly losses that lag behind are pulled, 0 or more.
        rate: of the weights, above 0.

    Raises:
        InputError: options that are not allowed. LossError at a call: a loss that is not above 0.

    Source: Chen, Badrinarayanan, Lee and Rabinovich, GradNorm (2018), algorithm 1 and equation 2.

    >>> p = torch.tensor([1.0], requires_grad=True)
    >>> weighting = GradNorm(p, alpha=0.0, rate=0.1)
    >>> weighting(torch.cat([p, 3 * p])).item()
    4.0
    >>> weighting.weights(2)
    tensor([1.2222, 0.7778], dtype=torch.float64)
    """

    def __init__(self, shared: Inputs, alpha: float = 1.5, rate: float = 0.025) -> None:
        """Check the options; the weights start at 1."""
        super().__init__()
        if shared is None:
            raise InputError("shared is None: name the parameters that gradients are compared by")
        self._shared = shared if isinstance(shared, (Tensor, torch.nn.Module)) else list(shared)  # gone through often
        self._alpha = as_number(alpha, "alpha", "finite, 0 or more", lambda x: 0 <= x < math.inf)
        self._rate = as_number(rate, "rate", "finite and above 0", lambda x: 0 < x < math.inf)

    def weights(self, m: int) -> Tensor:
        """The weights [m] of the next call."""
        return self._kept.get("weights", torch.ones(m, dtype=torch.float64))

    def _scalar(self, losses: Tensor) -> Tensor:
        self._recall("weights", losses)
        now = positive(losses, "GradNorm").detach().double().cpu()
        first = self._kept.setdefault("first", now)
        w = self.weights(len(losses))
        lengths = gradient_norms(losses, self._shared).double().cpu()
        ratio = now / first
        scaled = w * lengths
        target = scaled.mean() * (ratio / ratio.mean()) ** self._alpha
        new = (w - self._rate * (scaled - target).sign() * lengths).clamp_min(0)
        self._kept["weights"] = new * len(new) / new.sum() if bool(new.sum() > 0) else w
        return (w.to(losses) * losses).sum()
