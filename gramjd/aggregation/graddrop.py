"""GradDrop: in each coordinate keep either the positive or the negative entries, by lot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gramjd.aggregation._check import as_vector
from gramjd.aggregation._coordinatewise import Coordinatewise
from gramjd.aggregation._stateful import Stateful
from gramjd.errors import AggregatorError


class GradDrop(Stateful, Coordinatewise):
    """`y_k = sum_i (l_i + (1 - l_i) K_ik) J_ik`: `K` keeps one sign per coordinate k, the positive one with chance
    `f(P_k)`.

    `P_k = (1 + sum_i J_ik / sum_i |J_ik|) / 2` is the share of the positive entries, and `K_ik = 1` where `J_ik` has
    the sign that was drawn. Entries of one sign are summed as they are. One number in [0, 1) is drawn per coordinate,
    on the CPU, in float64 and in the order in which the columns come, so that a seed gives the same update on every
    device and for any division into parts. Cost: O(m n), and the transfer of n numbers where J is on another device.

    Table 1: non-conflicting no, linear under scaling no, weighted no (the update need not be a combination of
    gradients).

    Args:
        leak: the `l` [m], numbers from 0 (drop all of the other sign) to 1 (drop nothing); None for 0.
        f: an increasing function from tensors of shares in [0, 1] to tensors of chances, entry by entry; None for the
            share itself.
        seed: an int, for draws of its own; a torch.Generator on the CPU; or None for torch's global generator.

    Raises:
        AggregatorError: bad options; `leak` of another length than the number of losses; gradients that are not
            finite; an `f` that gives NaN; or called with a Gramian.

    Source: Chen et al., Just pick a sign: optimizing deep multitask models with gradient sign dropout (2020),
    algorithm 1.

    >>> import torch
    >>> from gramjd.aggregation import GradDrop
    >>> update = GradDrop(seed=0).aggregate(torch.tensor([[1.0, 2.0, 0.0], [3.0, -2.0, 0.0]]))
    >>> update[0].item(), abs(update[1]).item(), update[2].item()
    (4.0, 2.0, 0.0)
    """

    _scale_free = True

    def __init__(
        self,
        leak: Sequence[float] | Tensor | None = None,
        f: Callable[[Tensor], Tensor] | None = None,
        seed: int | torch.Generator | None = None,
    ) -> None:
        """Check the options, and make the generator, if it is to be one of its own."""
        super().__init__(seed)
        self._leak = None if leak is None else as_vector(leak, "leak", positive=False)
        if self._leak is not None and not bool(((self._leak >= 0) & (self._leak <= 1)).all()):
            raise AggregatorError(f"leak must lie between 0 and 1; got {self._leak.tolist()}")
        if f is not None and not callable(f):
            raise AggregatorError(f"f must be a function from shares to chances, or None; got {f!r}")
        self._f = f

    def _check_rows(self, m: int) -> None:
        if self._leak is not None and len(self._leak) != m:
            raise AggregatorError(f"leak has {len(self._leak)} entries, but there are {m} gradients: give one per loss")

    def _combine(self, columns: Tensor) -> Tensor:
        largest = columns.abs().amax(0)
        # A column in units of its largest entry: its sum cannot overflow.
        x = torch.where(largest > 0, columns / largest, 0.0)
        share = torch.where(largest > 0, (1 + x.sum(0) / x.abs().sum(0)) / 2, 0.5)
        chance = share if self._f is None else _chances(self._f, share)
        lot = torch.rand(columns.shape[1], dtype=torch.float64, generator=self._generator).to(columns.device)
        kept = torch.where(lot < chance, columns.clamp_min(0), columns.clamp_max(0))
        if self._leak is None:
            return kept.sum(0)
        leak = self._leak.to(columns.device, columns.dtype)[:, None]
        return (leak * columns + (1 - leak) * kept).sum(0)

    def __repr__(self) -> str:
        """The call that makes this aggregator (with the seed it started from)."""
        leak = None if self._leak is None else self._leak.tolist()
        return f"GradDrop(leak={leak}, f={self._f!r}, seed={self._seed})"


def _chances(f: Callable[[Tensor], Tensor], share: Tensor) -> Tensor:
    """`f(share)`, if no entry is NaN: no lot is below NaN, so the positive sign would never be drawn."""
    chance = f(share)
    bad = torch.as_tensor(chance, device=share.device).isnan().expand_as(share)
    if bool(bad.any()):
        raise AggregatorError(f"f must return chances, numbers from 0 to 1; f({share[bad][0].item():.6g}) is nan")
    return chance
