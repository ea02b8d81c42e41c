"""PCD: the first loss leads; every other one is granted a share of its own progress."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gramjd.aggregation._check import as_number, as_vector
from gramjd.aggregation._cosine_weighting import CosineWeighting, UnitGradients
from gramjd.aggregation._stateful import Stateful
from gramjd.aggregation.solvers.least_distance import least_distance
from gramjd.aggregation.solvers.rounding import of_square
from gramjd.errors import AggregatorError


class PCD(Stateful, CosineWeighting):
    """`y` is `argmin {|d - h_1|^2 : h_j . d >= tau_j |h_j|^2 for j >= 2}`, made as long as `g_1`.

    `h_i = g_i / sqrt(v_i)` are the gradients in units of their usual length: `v_i` is the running average of `|g_i|^2`
    over the calls, `v <- beta v + (1 - beta) |g|^2` from zero. (The paper corrects it for the start from zero, by a
    factor that all losses share and that cancels.) In words: follow the first loss, the primary one, turned as little
    as will give each of the others the share `tau` of the progress that a step along its own gradient would bring. The
    order of the losses matters: **the first is the primary one**.

    If no direction grants all the shares, `y = g_1`; if `g_1` is zero, or `d` is up to rounding, `w = 0`. Scaling a
    loss changes nothing but, for the first one, the length of the update (the paper adds 1e-8 to `v`, which would).
    Solved exactly as one problem in the dual cone; O(m^3), a few rounds. `v` is kept from call to call.

    Properties: non-conflicting no (not with the primary loss), linear under scaling no, weighted yes.

    Args:
        tau: from 0 to 1; one number, or m - 1 of them for the losses after the first.
        beta: the part of the old average, from 0 to below 1; 0 for the lengths of this call alone.

    Raises:
        AggregatorError: bad options; another number of losses than before; or `G` [m, m] is not square, finite,
            symmetric and, up to rounding, positive semi-definite.

    Source: Varam and AlHajri, Not all objectives are born equal: priority-constrained descent for hierarchical
    multi-objective optimization (2026), arXiv 2606.29521.

    >>> import torch
    >>> from gramjd.aggregation import PCD
    >>> PCD(tau=0.75).aggregate(torch.tensor([[5.0, 0.0], [0.0, 2.0]]))
    tensor([4., 3.])
    """

    _names = ("squares",)
    _waits = True  # to know whether there is such a direction

    def __init__(self, tau: float | Sequence[float] | Tensor = 0.02, beta: float = 0.999) -> None:
        """Check the options; the average starts at the first call."""
        super().__init__()
        self._shared = isinstance(tau, (int, float))
        self._tau = as_vector([tau] if isinstance(tau, (int, float)) else tau, "tau", positive=False)
        if not bool(((self._tau >= 0) & (self._tau <= 1)).all()):
            raise AggregatorError(f"tau must lie between 0 and 1; got {tau!r}")
        self._beta = as_number(beta, "beta", "from 0 to below 1", lambda x: 0 <= x < 1)

    @property
    def scale_free(self) -> bool:
        """Only without an average over calls, in which the gradients are as long as they were."""
        return self._beta == 0

    def _weights(self, cone: UnitGradients, eps: float) -> Tensor:
        m, norms = len(cone.norms), cone.norms
        if not self._shared and len(self._tau) != m - 1:
            raise AggregatorError(
                f"tau has {len(self._tau)} entries, but there are {m - 1} losses after the first: give one for each"
            )
        lengths = norms / self._usual_lengths(norms)
        lengths = torch.where(norms > 0, lengths, 0.0)
        if not bool(lengths[0] > 0):
            return torch.zeros_like(norms)
        # In unit vectors u = g / |g|, and in units of |h_1|: d = u_1 + sum_j mu_j u_j.
        tau = self._tau.to(norms.device) * lengths[1:] / lengths[0]
        alive = norms[1:] > 0
        C = cone.C[1:, 1:] * torch.outer(alive, alive)
        mu = least_distance(C, torch.where(alive, tau - cone.C[1:, 0], 0.0), eps)
        x = torch.cat([norms.new_ones(1), norms.new_zeros(m - 1) if mu is None else mu])
        square = x @ cone.C @ x
        length = torch.where(square > of_square(x, eps), square.sqrt(), torch.inf)
        return x / length * norms[0] * cone.inverse_norms

    def _usual_lengths(self, norms: Tensor) -> Tensor:
        squares = self._recall("squares", len(norms), norms.device)
        squares = self._beta * (0.0 if squares is None else squares) + (1 - self._beta) * norms.square()
        self._kept = {"squares": squares}
        return squares.sqrt()

    def __repr__(self) -> str:
        """The call that makes this aggregator (without what it has seen)."""
        tau = self._tau.item() if self._shared else self._tau.tolist()
        return f"PCD(tau={tau}, beta={self._beta})"
