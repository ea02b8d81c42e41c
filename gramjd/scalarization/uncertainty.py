"""Uncertainty weighting: each task's noise is learnt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gramjd.errors import InputError, LossError
from gramjd.losses import Losses
from gramjd.scalarization._scalarization import as_count, vector


class Uncertainty(nn.Module):
    """`sum_i exp(-s_i) L_i / c_i + s_i / 2`, with the log variances `s_i` learnt.

    Put `parameters()` into the optimizer, beside those of the model.
    `c_i` is 2 for regression (a Gaussian with variance `exp(s_i)`) and 1 for classification (a softmax with that
    temperature, in the paper's approximation). `s_i` starts at 0.

    Args:
        m: the number of losses.
        kinds: "regression" or "classification" for each; default "regression" for all.

    Raises:
        InputError: options that are not allowed. At a call LossError: another number of losses.

    Source: Kendall, Gal and Cipolla, Multi-task learning using uncertainty to weigh losses (2018), equations 7 and 10.

    >>> weighting = Uncertainty(2, ["regression", "classification"])
    >>> weighting(torch.tensor([4.0, 3.0], requires_grad=True)).item()
    5.0
    """

    def __init__(self, m: int, kinds: list[str] | None = None) -> None:
        """Make the log variances, all 0."""
        super().__init__()
        m = as_count(m, "m", 1)
        kinds = ["regression"] * m if kinds is None else list(kinds)
        wrong = [kind for kind in kinds if kind not in ("regression", "classification")]
        if wrong or len(kinds) != m:
            raise InputError(f"kinds is {kinds}; expected 'regression' or 'classification' for each of {m} losses")
        self.log_variances = nn.Parameter(torch.zeros(m))
        self.register_buffer("divisors", torch.tensor([2.0 if kind == "regression" else 1.0 for kind in kinds]))
        self.divisors: Tensor

    def forward(self, losses: Losses) -> Tensor:
        """One scalar for the losses [m] of a step."""
        L, s = vector(losses), self.log_variances
        if len(L) != len(s):
            raise LossError(f"Uncertainty was made for {len(s)} losses, but there are {len(L)}")
        return ((-s).exp() * L / self.divisors + s / 2).sum()
