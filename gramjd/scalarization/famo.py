"""FAMO: weights under which all losses fall at one rate, without a gradient per loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gramjd.errors import InputError, LossError
from gramjd.losses import Losses
from gramjd.scalarization._scalarization import Scalarization, as_number


class FAMO(Scalarization):
    """`c sum_i z_i log(L_i - b)` with `z = softmax(xi)`, `c = 1 / sum_i z_i / (L_i - b)`; after each step of the model
    `xi <- xi - rate (J_z^T delta + decay xi)`, `delta_i = log(L_i - b) - log(L_i' - b)` for the losses L' that the same
    batch has then, and `J_z = diag(z) - z z^T`.

        loss = famo(losses)
        loss.backward(); optimizer.step()
        with torch.no_grad():
            famo.update(losses_of(batch))

    `c` counts as a constant. A loss that fell less than the others gets more weight. (The published code takes a step
    of Adam on `xi` with that gradient; here it is the paper's gradient step.)

    Args:
        rate: of the weights, above 0.
        decay: pulls the weights towards equality, 0 or more.
        least: the `b`, below all losses.

    Raises:
        InputError: options that are not allowed; `update` without a call before it.
        LossError: a loss that is not above `least`.

    Source: Liu, Feng, Stone and Liu, FAMO: fast adaptive multitask optimization (2023), algorithm 1.

    >>> famo = FAMO(rate=1.0, decay=0.0)
    >>> _ = famo(torch.tensor([1.0, 1.0], requires_grad=True))
    >>> famo.update(torch.tensor([0.5, 1.0]))
    >>> famo.weights(2)
    tensor([0.4142, 0.5858], dtype=torch.float64)
    """

    def __init__(self, rate: float = 0.025, decay: float = 1e-3, least: float = 0.0) -> None:
        """Check the options; the weights start equal."""
        super().__init__()
        self._rate = as_number(rate, "rate", "finite and above 0", lambda x: 0 < x < math.inf)
        self._decay = as_number(decay, "decay", "finite, 0 or more", lambda x: 0 <= x < math.inf)
        self._least = as_number(least, "least", "that is finite", math.isfinite)

    def weights(self, m: int) -> Tensor:
        """The `z` [m] of the next call."""
        xi = self._kept.get("logits")
        return torch.full((m,), 1 / m, dtype=torch.float64) if xi is None else xi.softmax(0)

    def _scalar(self, losses: Tensor) -> Tensor:
        self._recall("logits", losses)
        above = self._above(losses)
        z = self.weights(len(losses)).to(losses)
        c = 1 / (z / above.detach()).sum()
        self._kept["before"] = above.detach().double().log().cpu()
        return c * (z * above.log()).sum()

    def update(self, losses: Losses) -> None:
        """Adapt the weights to what the step did: the losses [m] of the same batch after it, no gradients needed."""
        before = self._kept.pop("before", None)
        if before is None:
            raise InputError("update() comes after a call with the losses before the step, once for each")
        given = (
            [losses] if isinstance(losses, Tensor) else list(losses.values() if isinstance(losses, dict) else losses)
        )
        after = torch.cat([loss.detach().reshape(-1) for loss in given]).double().cpu()
        if len(after) != len(before):
            self._kept["before"] = before
            raise LossError(f"there were {len(before)} losses before the step, and are {len(after)} after it")
        delta = before - self._above(after).log()
        xi = self._kept.get("logits", torch.zeros_like(delta))
        z = xi.softmax(0)
        self._kept["logits"] = xi - self._rate * (z * (delta - z @ delta) + self._decay * xi)

    def _above(self, losses: Tensor) -> Tensor:
        above = losses - self._least
        if not bool((above.detach() > 0).all()):
            raise LossError(f"FAMO needs losses above {self._least}; got {losses.detach().tolist()}")
        return above
