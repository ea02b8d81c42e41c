"""MoDo: weights that walk towards MGDA's, one small step per call."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from gramjd.aggregation._batches import check_batches, cross_gramian, spread
from gramjd.aggregation._check import as_gramian, as_number
from gramjd.aggregation._stateful import Stateful
from gramjd.aggregation._weighting import Weighting, weights_dtype
from gramjd.aggregation.solvers.projection import onto_simplex


class MoDo(Stateful, Weighting):
    """`w <- P(w - gamma (A w + rho w))`, P the projection on the simplex; `w = 1/m` before the first call.

    `A = J_a J_b^T` for two independent batches a and b: its mean is the product of the mean Jacobians, while that of
    `J_a J_a^T` has the noise of the batch on top. The weights of the last call are kept; see `reset`, `state_dict`.

    - `batches=2`, the method as published: hand over the losses of both batches in one vector, batch after batch.
      Their Gramian [2m, 2m] holds `A`, and each batch gets half of the weights, so that the update is that of the
      average loss of the two.
    - `batches=3`: the weights of the third batch come from the other two (which get zeros).
    - `batches=1` (default): A is the Gramian of the one batch. Right for gradients without noise; with noise the
      weights are drawn to the losses whose gradients have little of it.

    `gamma` is in units of one over a squared gradient length, so unlike most aggregators this one depends on the scale
    of the losses. Cost: O(m^2), on the device of `G`.

    Properties: non-conflicting no, linear under scaling no, weighted yes.

    Args:
        gamma: the rate of the weights, above 0.
        rho: pulls the weights towards equality, 0 or more.
        batches: 1, 2 or 3, as above.

    Raises:
        AggregatorError: bad options; another number of losses than before; or `G` is not square, finite and symmetric.

    Source: Chen, Fernando, Ying and Chen, Three-way trade-off in multi-objective learning: optimization, generalization
    and conflict-avoidance (2024), algorithm 1.

    >>> import torch
    >>> from gramjd.aggregation import MoDo
    >>> aggregator = MoDo(gamma=0.1, rho=0.0)
    >>> aggregator(torch.diag(torch.tensor([1.0, 3.0])))
    tensor([0.5500, 0.4500])
    >>> aggregator(torch.diag(torch.tensor([1.0, 3.0])))
    tensor([0.5900, 0.4100])
    """

    _scale_free = False
    _names = ("weights",)
    _aligned: ClassVar = {"weights": "share"}

    def __init__(self, gamma: float = 0.1, rho: float = 0.1, batches: int = 1) -> None:
        """Check the options; the weights start at the first call."""
        super().__init__()
        self._gamma = as_number(gamma, "gamma", "that is finite and above 0", lambda x: 0 < x < math.inf)
        self._rho = as_number(rho, "rho", "that is finite, 0 or more", lambda x: 0 <= x < math.inf)
        self._batches = check_batches(batches)

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]; [batches m] for [batches m, batches m]."""
        A = cross_gramian(as_gramian(G), self._batches)
        m = len(A)
        if not m:
            return G.new_zeros(0, dtype=weights_dtype(G))
        kept = self._recall("weights", m, A.device)
        start = A.new_full((m,), 1 / m) if kept is None else kept
        w = onto_simplex(start - self._gamma * (A @ start + self._rho * start))
        self._keep("weights", w, start, A)
        return spread(w, self._batches).to(weights_dtype(G))

    def __repr__(self) -> str:
        """The call that makes this aggregator (without the weights kept)."""
        return f"MoDo(gamma={self._gamma}, rho={self._rho}, batches={self._batches})"
