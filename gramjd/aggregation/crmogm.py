"""CRMOGM: any other aggregator, its weights smoothed over the calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gramjd.aggregation._check import as_number, as_vector, check_length, check_shape
from gramjd.aggregation._inner import check_inner, stated_scale_free
from gramjd.aggregation._stateful import Stateful
from gramjd.aggregation._weighting import Weighting, weigh, weights_dtype


class CRMOGM(Stateful, Weighting):
    """`w_t = alpha w_(t-1) + (1 - alpha) W(G_t)` for another aggregator `W`: correlation reduced by averaging.

    Weights found from a noisy Jacobian are correlated with its noise, which biases `J^T w`. The average over calls
    depends on the present noise only by the part `1 - alpha`. Before the first call `w_0` is `initial`, or `W(G_1)`.

    `alpha` may be set between calls (`aggregator.alpha = 0.99`): the paper lets it grow to 1 as the learning rate
    falls, for example `1 - rate / first_rate`. Cost: that of `W`.

    Properties: weighted yes; the others not even if `W` has them, as old weights take part (`alpha = 0` is `W`).

    Args:
        weighting: the other aggregator, any function from G [m, m] to weights [m], or from G and the losses where it
            takes losses.
        alpha: the part of the old weights, from 0 to 1.
        initial: `w_0` [m], finite; None for the weights of the first call.

    Raises:
        AggregatorError: bad options; another number of losses than before; or what `weighting` raises.

    Source: Zhou et al., On the convergence of stochastic multi-objective gradient manipulation and beyond (2022),
    algorithm 1.

    >>> import torch
    >>> from gramjd.aggregation import CRMOGM, MGDA
    >>> aggregator = CRMOGM(MGDA(), alpha=0.5, initial=[0.5, 0.5])
    >>> aggregator(torch.diag(torch.tensor([1.0, 3.0])))
    tensor([0.6250, 0.3750])
    """

    # Only to hand them on: they may be left out when the other aggregator does without.
    takes_losses: ClassVar[bool] = True
    _names = ("weights",)
    _aligned: ClassVar = {"weights": "each, or not seen yet"}
    _per_loss = ("_initial",)

    def __init__(
        self,
        weighting: Callable[..., Tensor],
        alpha: float = 0.9,
        initial: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Check the options; nothing depends on m until the first call."""
        super().__init__()
        self._weighting = check_inner(weighting, "weighting")
        self._adopt(weighting=weighting)
        self.alpha = alpha
        self._initial = None if initial is None else as_vector(initial, "initial", positive=False)

    def _inner(self) -> tuple[object, ...]:
        return (self._weighting, *getattr(self._weighting, "_inner", lambda: ())())

    @property
    def scale_free(self) -> bool | None:
        """What the aggregator says that is averaged."""
        return stated_scale_free(self._weighting)

    @property
    def alpha(self) -> float:
        """The part of the old weights."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha = as_number(value, "alpha", "from 0 to 1", lambda x: 0 <= x <= 1)

    def __call__(self, G: Tensor, losses: Tensor | None = None) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]; `losses` are handed on to an aggregator that takes them."""
        m = check_shape(G)
        fresh = weigh(self._weighting, G, losses).detach().to(G.device, torch.float64)
        old = self._recall("weights", m, G.device)
        if self._initial is not None:
            check_length(self._initial, "initial", m)
            self._initial = self._initial.to(G.device)
        if old is None:
            old = self._initial
        else:  # a loss that was missing until now has NaN
            old = torch.where(old.isnan(), fresh if self._initial is None else self._initial, old)
        w = fresh if old is None else self._alpha * old + (1 - self._alpha) * fresh
        self._keep("weights", w, w if old is None else old, fresh)
        return w.to(weights_dtype(G))

    def __repr__(self) -> str:
        """The call that makes this aggregator (without the weights kept)."""
        initial = None if self._initial is None else self._initial.tolist()
        return f"CRMOGM({self._weighting!r}, alpha={self._alpha}, initial={initial})"
