"""Losses of several independent batches in one Gramian, for methods that need an unbiased `J J^T`.

With `batches = 2` or 3 the losses come batch after batch, the same m losses for each: `torch.cat([losses_on_a,
losses_on_b])`. Their one Gramian then holds `J_a J_b^T` as its block (a, b).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.errors import AggregatorError


def check_batches(batches: int) -> int:
    """`batches` if it is 1, 2 or 3."""
    if isinstance(batches, bool) or not isinstance(batches, int) or batches not in (1, 2, 3):
        raise AggregatorError(f"batches must be 1, 2 or 3; got {batches!r}")
    return batches


def cross_gramian(H: Tensor, batches: int) -> Tensor:
    """`J_a J_b^T` [m, m] out of `H` [batches m, batches m]; H itself for one batch."""
    m, rest = divmod(len(H), batches)
    if rest:
        raise AggregatorError(
            f"the losses of {batches} batches were expected one batch after the other, but there are {len(H)} losses,"
            f" which {batches} does not divide"
        )
    return H if batches == 1 else H[:m, m : 2 * m]


def spread(w: Tensor, batches: int) -> Tensor:
    """Weights [batches m]: of two batches each gets half of `w` [m], of three the third gets all of it.

    >>> import torch
    >>> spread(torch.tensor([1.0]), 2), spread(torch.tensor([1.0]), 3)
    (tensor([0.5000, 0.5000]), tensor([0., 0., 1.]))
    """
    if batches == 3:
        return torch.cat([torch.zeros_like(w), torch.zeros_like(w), w])
    return w.repeat(batches) / batches
