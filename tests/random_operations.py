"""The operations of random programs: a name, what the operand must be like, and the call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.random_edits import EDITS
from tests.random_layers import LAYERS, Needs, Run, axes
from tests.random_routes import ROUTES

if TYPE_CHECKING:
    from tests.strategies_graphs import Hand


def pointwise(h: Hand, x: Tensor) -> Tensor:
    table = [
        torch.tanh,
        torch.sin,
        torch.sigmoid,
        F.softplus,
        torch.square,
        F.gelu,
        F.relu,
        torch.neg,
        torch.abs,
        F.silu,
    ]
    return table[h.int(0, len(table) - 1)](x)


def with_other(h: Hand, x: Tensor) -> Tensor:
    y = h.like(x)
    return [x + y, x * y.tanh(), x - 0.5 * y, x / (1 + y.square()), torch.maximum(x, y), torch.where(x > 0, x, y)][
        h.int(0, 5)
    ]


def with_reduced(h: Hand, x: Tensor) -> Tensor:
    """Combine with its own mean along an axis: centring, along the batch or not."""
    d = h.dim(x)
    return x - x.mean(d, keepdim=True) if h.flag() else x * x.tanh().sum(d, keepdim=True)


def merge(h: Hand, x: Tensor) -> Tensor:
    d = h.int(0, x.dim() - 2)
    return x.flatten(d, d + 1)


def split_axis(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    n = x.shape[d]
    part = next((k for k in (2, 3, 5) if n % k == 0), 1)
    return x.unflatten(d, (part, n // part) if h.flag() else (n // part, part))


def reshape_freely(h: Hand, x: Tensor) -> Tensor:
    """To two axes with any divisor: axes need not nest."""
    n = x.numel()
    divisors = [k for k in range(1, n + 1) if n % k == 0]
    rows = divisors[h.int(0, len(divisors) - 1)]
    return x.reshape(rows, n // rows)


def permute(h: Hand, x: Tensor) -> Tensor:
    order = list(range(x.dim()))
    for k in range(x.dim() - 1):
        j = h.int(k, x.dim() - 1)
        order[k], order[j] = order[j], order[k]
    return x.permute(order)


def reduce(h: Hand, x: Tensor) -> Tensor:
    dims = sorted({h.dim(x) for _ in range(h.int(1, 2))})
    keep = h.flag()
    table = [
        torch.sum,
        torch.mean,
        torch.amax,
        torch.logsumexp,
        lambda x, d, keepdim: (x.square().sum(d, keepdim) + 1).sqrt(),
    ]
    return table[h.int(0, len(table) - 1)](x, dims, keepdim=keep)


def reduce_one(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    table = [
        lambda: x.max(d).values,
        lambda: x.prod(d),
        lambda: x.median(d).values,
        lambda: x.var(d, unbiased=False),
        lambda: torch.linalg.vector_norm(x + 2, dim=d),
    ]
    return table[h.int(0, len(table) - 1)]()


def softmax(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    return x.softmax(d) if h.flag() else x.log_softmax(d)


def cat(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    parts = [x, h.like(x).sin(), torch.ones_like(x)][: h.int(2, 3)]
    return torch.cat(parts[::-1] if h.flag() else parts, d)


def stack(h: Hand, x: Tensor) -> Tensor:
    return torch.stack([x, h.like(x).tanh()], h.int(0, x.dim()))


def part(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    pieces = x.split(h.int(1, 3), d) if h.flag() else x.chunk(2, d)
    first, last = pieces[0], pieces[-1]
    return first * 2 + last.sin() if first.shape == last.shape else last


def unbind(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    pieces = x.unbind(d)
    return (
        torch.stack([p * (k + 1) for k, p in enumerate(pieces[::-1])], h.int(0, x.dim() - 1))
        if h.flag()
        else pieces[-1].tanh()
    )


def select(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    return x.select(d, h.int(0, x.shape[d] - 1))


def slice_axis(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    start, step = h.int(0, x.shape[d] - 1), h.int(1, 2)
    return x[(slice(None),) * d + (slice(start, None, step),)]


def index(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    rows = torch.tensor([h.int(0, x.shape[d] - 1) for _ in range(h.int(1, 4))])
    return x.index_select(d, rows) if h.flag() else x[(slice(None),) * d + (rows,)]


def index_two(h: Hand, x: Tensor) -> Tensor:
    n = h.int(1, 5)
    a = torch.tensor([h.int(0, x.shape[0] - 1) for _ in range(n)])
    return x[a, torch.tensor([h.int(0, x.shape[1] - 1) for _ in range(n)])]


def gather(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    return x.gather(d, torch.randint(0, x.shape[d], x.shape))


def index_add(h: Hand, x: Tensor) -> Tensor:
    d, n = h.dim(x), h.int(1, 4)
    shape = list(x.shape)
    shape[d] = n
    return torch.ones(shape).index_add(d, torch.randint(0, n, (x.shape[d],)), x)


def scatter(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    ids = torch.randint(0, x.shape[d], x.shape)
    return torch.zeros_like(x).scatter_add(d, ids, x.sin())


def reorder(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    table = [
        lambda: x.flip(d),
        lambda: x.roll(1, d),
        lambda: x.sort(d).values,
        lambda: x.cumsum(d),
        lambda: x.cummax(d).values,
    ]
    return table[h.int(0, len(table) - 1)]()


def expand(h: Hand, x: Tensor) -> Tensor:
    d, n = h.int(0, x.dim()), h.int(1, 3)
    y = x.unsqueeze(d)
    shape = [n if k == d else -1 for k in range(y.dim())]
    return y.expand(shape) if h.flag() else y.repeat([n if k == d else 1 for k in range(y.dim())])


def repeat(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    return x.repeat_interleave(2, d) if h.flag() else x.repeat([2 if k == d else 1 for k in range(x.dim())])


def drop_ones(h: Hand, x: Tensor) -> Tensor:
    return x.squeeze() if h.flag() else x.unsqueeze(h.int(0, x.dim()))


def product(h: Hand, x: Tensor) -> Tensor:
    y = h.like(x)
    return x @ y.mT if h.flag() else x.mT @ y


def masked(h: Hand, x: Tensor) -> Tensor:
    mask = torch.rand(x.shape[h.dim(x) :]) > 0.5
    return x.masked_fill(mask, 0.7) if h.flag() else torch.where(mask, x, 0.2 * x.sin())


def outer(h: Hand, x: Tensor) -> Tensor:
    return x.unsqueeze(-1) * h.like(x).unsqueeze(-2)


def pairwise(h: Hand, x: Tensor) -> Tensor:
    """All pairs along an axis: along the batch, a contrastive term."""
    d = h.dim(x)
    return (x.unsqueeze(d) - h.like(x).unsqueeze(d + 1)).tanh()


def diagonal(h: Hand, x: Tensor) -> Tensor:
    d = h.int(0, x.dim() - 2)
    return x.diagonal(h.int(0, 0), d, d + 1)


def triangle(h: Hand, x: Tensor) -> Tensor:
    return x.tril() if h.flag() else x.triu(-1)


def windows(h: Hand, x: Tensor) -> Tensor:
    d = h.dim(x)
    return x.unfold(d, min(2, x.shape[d]), 1)


def pad(h: Hand, x: Tensor) -> Tensor:
    return F.pad(x, [h.int(0, 1) for _ in range(2 * min(2, x.dim()))], value=0.3)


def detached(h: Hand, x: Tensor) -> Tensor:
    return x * h.like(x).detach() + x


OPERATIONS: dict[str, tuple[Needs, Run]] = {
    **LAYERS,
    **EDITS,
    **ROUTES,
    "pointwise": (axes(0), pointwise),
    "with other": (axes(0), with_other),
    "with own mean": (axes(1), with_reduced),
    "merge axes": (axes(2), merge),
    "split axis": (axes(1, 3), split_axis),
    "reshape": (axes(1), reshape_freely),
    "permute": (axes(2), permute),
    "reduce": (axes(2), reduce),
    "reduce one": (axes(2), reduce_one),
    "softmax": (axes(1), softmax),
    "cat": (axes(1), cat),
    "stack": (axes(1, 3), stack),
    "part": (axes(1), part),
    "unbind": (axes(2), unbind),
    "select": (axes(2), select),
    "slice": (axes(1), slice_axis),
    "index": (axes(1), index),
    "index two": (axes(2), index_two),
    "gather": (axes(1), gather),
    "index add": (axes(1), index_add),
    "scatter": (axes(1), scatter),
    "reorder": (axes(1), reorder),
    "expand": (axes(0, 3), expand),
    "repeat": (axes(1), repeat),
    "ones": (axes(0, 3), drop_ones),
    "product": (axes(2), product),
    "masked": (axes(1), masked),
    "outer": (axes(1, 3), outer),
    "pairwise": (axes(1, 3), pairwise),
    "diagonal": (axes(2), diagonal),
    "triangle": (axes(2), triangle),
    "windows": (axes(1, 3), windows),
    "pad": (axes(1), pad),
    "detached": (axes(0), detached),
}
