"""The nearest point of the simplex."""

from __future__ import annotations

import torch
from torch import Tensor


def onto_simplex(y: Tensor) -> Tensor:
    """`argmin {|v - y| : v >= 0, sum v = 1}` [m] for `y` [m], by sorting: O(m log m), without synchronising.

    >>> import torch
    >>> onto_simplex(torch.tensor([0.9, 0.5, -3.0]))
    tensor([0.7000, 0.3000, 0.0000])
    """
    # Entries more than one below the largest end at zero, so nothing is lost however large they all are.
    y = (y - y.amax()).clamp_min(-2.0)
    falling = y.sort(descending=True).values
    levels = (falling.cumsum(0) - 1) / torch.arange(1, len(y) + 1, device=y.device, dtype=y.dtype)
    last = ((falling > levels).sum() - 1).clamp_min(0)
    return (y - levels.gather(0, last[None])).clamp_min(0)
