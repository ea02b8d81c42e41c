"""Experts whose matrices lie in one tensor, multiplied group by group in one call. It computes in float32 at most."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add_ways

B, T, D, O = 4, 3, 8, 4


def hidden(*shape: int) -> Tensor:
    return nn.Linear(5, D)(torch.randn(*shape, 5)).float()


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.4 * torch.randn(shape, dtype=torch.float32))


def grouped(x: Tensor, w: Tensor, *ends: int) -> Tensor:
    return F.grouped_mm(x, w, offs=torch.tensor(ends, dtype=torch.int32) if ends else None)


def routed(tokens: int = T, transposed: bool = False, unused: bool = False) -> Tensor:
    """Tokens sorted by expert, two grouped products, and back, as transformers does it."""
    x, n = hidden(B, tokens), 4
    up, down = (weights(n, 16, D), weights(n, D, 16)) if transposed else (weights(n, D, 16), weights(n, 16, D))
    chosen = torch.randint(0, n - unused, (B * tokens,))
    order = chosen.argsort()
    ends = chosen.bincount(minlength=n).cumsum(0).int()
    y = x.reshape(-1, D)[order]
    for w in (up, down):
        y = F.grouped_mm(y.tanh(), w.transpose(1, 2) if transposed else w, offs=ends)
    return y[order.argsort()].view(B, tokens, D)


add_ways(
    "experts",
    "sample",
    {
        "one-token": lambda: routed(1),
        "rows": lambda: grouped(hidden(12), weights(3, D, O), 3, 7, 12),
        "empty-group": lambda: grouped(hidden(B), weights(3, D, O), 1, 1, 4),
        "batches": lambda: grouped(hidden(B, 4), weights(B, D, O)),
        "batches-made": lambda: grouped(hidden(B, 4), hidden(B, D)),
        "frozen": lambda: grouped(hidden(12), torch.randn(3, D, O, dtype=torch.float32), 3, 7, 12),
        "of-data": lambda: grouped(torch.randn(12, D, dtype=torch.float32), weights(3, D, O), 3, 7, 12),
        "made": lambda: grouped(hidden(12), weights(3, D, O).sin(), 3, 7, 12),
    },
    dtypes=(torch.float32,),
    tol=1e-5,
)
add_ways(
    "experts",
    None,
    {
        "tokens": routed,
        "tokens-transposed": lambda: routed(transposed=True),
        "unused": lambda: routed(unused=True),
        "contracted": lambda: grouped(hidden(8).t(), hidden(8), 4, 8, 8),
    },
    dtypes=(torch.float32,),
    tol=1e-5,
)
