"""The aggregator as one operation of a graph: it may decide by numbers, on the host, and have a past."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gramjd.backward import weights_of
from gramjd.errors import LossError
from gramjd.kernels.tracing import whole
from gramjd.losses import all_finite

Aggregator = Callable[..., Tensor]


class Handle:
    """An aggregator under a number, which a graph can hold. Called with a Gramian, it is that operation."""

    _numbers = itertools.count()

    def __init__(self, aggregator: Aggregator) -> None:
        self.aggregator = aggregator
        self.number = next(self._numbers)
        self.takes_losses = True
        _handles[self.number] = self

    def __call__(self, G: Tensor, losses: Tensor) -> Tensor:
        """The weights [m]."""
        found: Tensor = weights(G, losses, self.number)
        return found


_handles: weakref.WeakValueDictionary[int, Handle] = weakref.WeakValueDictionary()


@whole("weights(Tensor G, Tensor losses, int handle) -> Tensor", lambda G, losses, handle: G.new_empty(len(G)))
def weights(G: Tensor, losses: Tensor, handle: int) -> Tensor:
    """What the aggregator of a handle makes of G [m, m] and the losses; checked where the host need not wait for it."""
    aggregator: Any = _handles[handle].aggregator
    if G.device.type == "cpu":
        if not all_finite(losses):
            raise LossError(
                "losses have NaN or infinite elements: parameters were left as they were; check the forward pass"
            )
        return weights_of(aggregator, G, losses).to(G.dtype).clone()
    extra = (losses,) if getattr(aggregator, "takes_losses", False) else ()
    found = aggregator(G.clone(), *extra).to(G.dtype)
    return torch.where(torch.isfinite(G).all(), found, torch.nan)
