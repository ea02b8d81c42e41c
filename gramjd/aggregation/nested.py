"""Nested: one loss per sample and task, combined over the one first and then over the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gramjd.aggregation._check import as_gramian
from gramjd.aggregation._inner import check_inner, stated_scale_free
from gramjd.aggregation._loss_weighting import LossWeighting
from gramjd.aggregation._stateful import Stateful
from gramjd.aggregation._weighting import weigh
from gramjd.aggregation.upgrad import UPGrad
from gramjd.errors import AggregatorError

_ORDERS = ("tasks", "samples")


class Nested(Stateful, LossWeighting):
    """For losses [n, k], k tasks on each of n samples: combine along one axis, then the results along the other.

    ===================  ===========================================================================================
    `UPGrad()` alone     flat: all n k gradients at once, samples and tasks play no part
    `first="tasks"`      the k task gradients of each sample are combined; then the n resulting gradients, one a sample
    `first="samples"`    the n sample gradients of each task are combined; then the k resulting gradients, one a task
    ===================  ===========================================================================================

    In formulas, for `first="tasks"`: `V[i] = W_tasks(G_ii)` with `G_ii` [k, k] the Gramian of sample i; then
    `G'_ij = V[i] G_ij V[j]^T` [n, n], which is exactly the Gramian of the n combined gradients; then
    `w[i, t] = W_samples(G')_i V[i, t]`. So the update is that of combining rows of J twice, but no row is formed. An
    aggregator that takes losses gets those of its block first, and after that the combined losses `V[i] . L[i]`.

    Any of the two may be `Mean()`: `Nested(tasks=UPGrad(), samples=Mean(), first="samples")` is multi-task training on
    batch means, by way of one Gramian. Cost: n (or k) small problems in a loop, one of the other size, and O((n k)^2).

    Properties: non-conflicting if both are, but only with the combined gradients of the first step; weighted yes.

    Args:
        tasks: the aggregator across the tasks; None for `UPGrad()`.
        samples: the aggregator across the samples; None for `UPGrad()`.
        first: "tasks" or "samples": which of the two is applied first, within blocks. It must be one that keeps
            nothing from call to call (a generator is fine), as blocks would mix.

    Raises:
        AggregatorError: bad options; losses that are not of shape [samples, tasks]; `G` [n k, n k] is not square,
            finite and symmetric; or what the two aggregators raise.

    >>> import torch
    >>> from gramjd.aggregation import Mean, MGDA, Nested
    >>> losses = torch.ones(1, 2)  # one sample, two tasks
    >>> Nested(tasks=MGDA(), samples=Mean())(torch.diag(torch.tensor([1.0, 3.0])), losses)
    tensor([0.7500, 0.2500])
    """

    def __init__(
        self,
        tasks: Callable[..., Tensor] | None = None,
        samples: Callable[..., Tensor] | None = None,
        first: str = "tasks",
    ) -> None:
        """Check the options; the shape comes with each call."""
        super().__init__()
        if first not in _ORDERS:
            raise AggregatorError(f"first must be 'tasks' or 'samples'; got {first!r}")
        self._first = first
        self._tasks = check_inner(UPGrad() if tasks is None else tasks, "tasks")
        self._samples = check_inner(UPGrad() if samples is None else samples, "samples")
        inner = self._tasks if first == "tasks" else self._samples
        if isinstance(inner, Stateful) and inner.remembers:
            raise AggregatorError(
                f"{inner!r} keeps values from call to call, and would mix those of different {self._blocks}: it can be"
                f" applied second, but not first"
            )
        self._adopt(tasks=self._tasks, samples=self._samples)

    @property
    def scale_free(self) -> bool | None:
        """True if both aggregators are; False if one of them is not."""
        stated = [stated_scale_free(part) for part in (self._tasks, self._samples)]
        return False if False in stated else None if None in stated else True

    @property
    def _blocks(self) -> str:
        """What there is one block of for each."""
        return "samples" if self._first == "tasks" else "tasks"

    def _weights(self, G: Tensor, losses: Tensor) -> Tensor:
        if losses.ndim != 2:
            raise AggregatorError(
                f"Nested needs losses of shape [samples, tasks] in one tensor; got shape {list(losses.shape)}. For one"
                " axis use the aggregator itself"
            )
        if not losses.numel():
            return losses.reshape(0)
        H, by_task = as_gramian(G).view(*losses.shape, *losses.shape), self._first == "samples"
        if by_task:
            H, losses = H.permute(1, 0, 3, 2), losses.mT
        inner, outer = (self._samples, self._tasks) if by_task else (self._tasks, self._samples)
        blocks = [H[i, :, i].to(G.dtype) for i in range(len(H))]
        V = torch.stack([weigh(inner, B, L).double() for B, L in zip(blocks, losses, strict=True)])
        v = weigh(outer, combined(H, V, G.dtype), (V * losses).sum(1)).double()
        w = v[:, None] * V
        return (w.mT if by_task else w).reshape(-1)

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return f"Nested(tasks={self._tasks!r}, samples={self._samples!r}, first={self._first!r})"


def combined(H: Tensor, V: Tensor, dtype: torch.dtype) -> Tensor:
    """`V[i] H_ij V[j]^T` [b, b] in `dtype`, for a Gramian `H` [b, c, b, c] of rounded entries and weights `V` [b, c].

    Gradients that cancel to the rounding of H (of `dtype`) become zero: what is left of them is noise, and its angles
    to other gradients would mean nothing.
    """
    half = torch.einsum("iajb,jb->iaj", H, V)
    A = torch.einsum("ia,iaj->ij", V, half)
    lengths = torch.einsum("iaia->ia", H).clamp_min(0).sqrt()
    noise = 64 * torch.finfo(dtype).eps * (V.abs() * lengths).sum(1).square()
    alive = (A.diagonal() > noise).to(A.dtype)
    return ((A + A.mT) / 2 * torch.outer(alive, alive)).to(dtype)
