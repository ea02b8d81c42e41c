"""TrimmedMean: in each coordinate the mean without the most extreme entries."""

from __future__ import annotations

from torch import Tensor

from gramjd.aggregation._check import as_count
from gramjd.aggregation._coordinatewise import Coordinatewise
from gramjd.errors import AggregatorError


class TrimmedMean(Coordinatewise):
    """`y_k` is the mean of the entries of column k without its `trim` largest and its `trim` smallest ones.

    Up to `trim` gradients may be anything (finite) and move no coordinate out of the range of the others. `trim = 0`
    is Mean, and with `m = 2 trim + 1` it is the median. Cost: O(n m log m), on the device of J.

    Properties: non-conflicting no, linear under scaling no, weighted no (the update need not be a combination of
    gradients).

    Args:
        trim: how many entries to leave out at either end, 0 or more; at least `2 trim + 1` gradients are needed.

    Raises:
        AggregatorError: bad `trim`; too few gradients; gradients that are not finite; or called with a Gramian.

    Source: Yin, Chen, Ramchandran and Bartlett, Byzantine-robust distributed learning: towards optimal statistical
    rates (2018), definition 2.

    >>> import torch
    >>> from gramjd.aggregation import TrimmedMean
    >>> TrimmedMean(1).aggregate(torch.tensor([[1.0, 0.0], [-90.0, 2.0], [3.0, 1.0], [5.0, 9.0]]))
    tensor([2.0000, 1.5000])
    """

    _scale_free = True

    def __init__(self, trim: int) -> None:
        """Check the count; m is checked in each call."""
        self._trim = as_count(trim, "trim", 0)

    def _check_rows(self, m: int) -> None:
        if m <= 2 * self._trim:
            raise AggregatorError(f"{self!r} needs at least {2 * self._trim + 1} gradients; got {m}")

    def _combine(self, columns: Tensor) -> Tensor:
        if not self._trim:
            return columns.mean(0)
        return columns.sort(0).values[self._trim : len(columns) - self._trim].mean(0)

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return f"TrimmedMean(trim={self._trim})"
