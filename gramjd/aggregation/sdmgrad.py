"""SDMGrad: MGDA held near a preferred direction, solved by a few steps that start where the last call ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gramjd.aggregation._batches import check_batches, cross_gramian, spread
from gramjd.aggregation._check import as_count, as_gramian, as_number, as_vector, check_length
from gramjd.aggregation._stateful import Stateful
from gramjd.aggregation._weighting import Weighting, weights_dtype
from gramjd.aggregation.solvers.projection import onto_simplex
from gramjd.errors import AggregatorError


class SDMGrad(Stateful, Weighting):
    """`(v + lambda u) / (1 + lambda)`, where `v` on the simplex descends on `|J^T (v + lambda u)|^2 / 2`.

    Every call takes `steps` projected gradient steps with momentum from the `v` that the last call ended with:
    `z <- momentum z + A (v + lambda u) / s^2`, `v <- P(v - rate z)`, where P projects on the simplex, `z` starts at
    zero in each call, and `s` is the mean of the roots of the diagonal of `A` (negative entries count as zero), which
    makes the rate one without units. `lambda = 0` is MGDA in the limit of many steps, large `lambda` a weighted sum.

    `A = J_a J_b^T` for two independent batches, whose mean has no noise on its diagonal:

    - `batches=3`, the method as published: hand over the losses of three batches in one vector, batch after batch. The
      first two make `A`, the third gets the weights.
    - `batches=2`: the same A; each batch gets half of the weights.
    - `batches=1` (default): A is the Gramian of the one batch, which is right for gradients without noise.

    Cost: O(steps m^2), on the device of `G` without synchronising but for one check. `v` is kept from call to call.

    Properties: non-conflicting no, linear under scaling no, weighted yes.

    Args:
        lambda_: how strongly the preferred direction `J^T u` pulls, 0 or more.
        preference: the `u` [m], 0 or more and not all 0; None for `1/m`. It is used as it stands. A loss with `u_i = 0`
            still counts in `v`.
        rate: of the inner steps, above 0.
        momentum: of the inner steps, from 0 to below 1.
        steps: how many of them in each call, 1 or more.
        batches: 1, 2 or 3, as above.

    Raises:
        AggregatorError: bad options; another number of losses than before; or `G` is not square, finite and symmetric.

    Source: Xiao, Ban and Ji, Direction-oriented multi-objective learning: simple and provable stochastic algorithms
    (2023), algorithm 1 and section 6.1 (the scale s).

    >>> import torch
    >>> from gramjd.aggregation import SDMGrad
    >>> aggregator = SDMGrad(lambda_=0.5, rate=0.5, momentum=0.0, steps=50)
    >>> aggregator(torch.diag(torch.tensor([1.0, 4.0])))
    tensor([0.8000, 0.2000])
    """

    _scale_free = True
    _names = ("simplex",)
    _aligned: ClassVar = {"simplex": "share"}
    _per_loss = ("_preference",)

    def __init__(
        self,
        lambda_: float = 0.3,
        preference: Sequence[float] | Tensor | None = None,
        rate: float = 10.0,
        momentum: float = 0.5,
        steps: int = 20,
        batches: int = 1,
    ) -> None:
        """Check the options; the weights start at the first call."""
        super().__init__()
        self._lambda = as_number(lambda_, "lambda_", "that is finite, 0 or more", lambda x: 0 <= x < math.inf)
        self._preference = None if preference is None else as_vector(preference, "preference", positive=False)
        if self._preference is not None and not bool((self._preference >= 0).all() & (self._preference > 0).any()):
            raise AggregatorError(
                f"preference must have no negative entry, and one above zero; got {self._preference.tolist()}"
            )
        self._rate = as_number(rate, "rate", "that is finite and above 0", lambda x: 0 < x < math.inf)
        self._momentum = as_number(momentum, "momentum", "from 0 to below 1", lambda x: 0 <= x < 1)
        self._steps, self._batches = as_count(steps, "steps", 1), check_batches(batches)

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]; [batches m] for [batches m, batches m]."""
        A = cross_gramian(as_gramian(G), self._batches)
        m = len(A)
        if self._preference is not None:
            check_length(self._preference, "preference", m)
            self._preference = self._preference.to(A.device)
        if not m:
            return G.new_zeros(0, dtype=weights_dtype(G))
        uniform = A.new_full((m,), 1 / m)
        u = uniform if self._preference is None else self._preference
        kept = self._recall("simplex", m, A.device)
        start = uniform if kept is None else kept
        v = self._descend(A, start, u)
        self._keep("simplex", v, start, A)
        return spread((v + self._lambda * u) / (1 + self._lambda), self._batches).to(weights_dtype(G))

    def _descend(self, A: Tensor, v: Tensor, u: Tensor) -> Tensor:
        scale = A.diagonal().clamp_min(0).sqrt().mean()
        A = torch.where(scale == 0, 0.0, A / scale.square())
        z = torch.zeros_like(v)
        for _ in range(self._steps):
            z = self._momentum * z + A @ (v + self._lambda * u)
            v = onto_simplex(v - self._rate * z)
        return v

    def __repr__(self) -> str:
        """The call that makes this aggregator (without the weights kept)."""
        preference = None if self._preference is None else self._preference.tolist()
        return (
            f"SDMGrad(lambda_={self._lambda}, preference={preference}, rate={self._rate}, momentum={self._momentum},"
            f" steps={self._steps}, batches={self._batches})"
        )
