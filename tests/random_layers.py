"""The layers of random programs: operations with parameters, and attention, normalisation, pooling, routing.

A call gets a ``Hand`` (drawn numbers, parameters, other tensors) and the operand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from tests.strategies_graphs import Hand

Needs = Callable[[Tensor], bool]
Run = Callable[["Hand", Tensor], Tensor]


def axes(low: int, high: int = 4) -> Needs:
    return lambda x: low <= x.dim() <= high


def linear(h: Hand, x: Tensor) -> Tensor:
    o = h.int(1, 5)
    return F.linear(x, h.weight(o, x.shape[-1]), h.weight(o) if h.flag() else None)


def weight_first(h: Hand, x: Tensor) -> Tensor:
    return h.weight(h.int(1, 4), x.shape[-2]) @ x


def along_first(h: Hand, x: Tensor) -> Tensor:
    """A linear map along a drawn axis: along the batch, it mixes samples."""
    d = h.dim(x)
    return F.linear(x.movedim(d, -1), h.weight(h.int(1, 4), x.shape[d])).movedim(-1, d)


def with_parameter(h: Hand, x: Tensor) -> Tensor:
    """Broadcast addition or product with a parameter over some of the axes."""
    first = h.int(0, x.dim())
    shape = [n if h.flag() else 1 for n in x.shape[first:]]
    w = h.weight(*shape)
    return (x + w) if h.flag() else (x * w)


def layer_norm(h: Hand, x: Tensor) -> Tensor:
    shape = x.shape[h.dim(x) :]
    return F.layer_norm(
        x, shape, h.weight(*shape) if h.flag() else None, h.weight(*shape) if h.flag() else None, eps=0.1
    )


def batch_norm(h: Hand, x: Tensor) -> Tensor:
    """Not on images: where a side has length 1, PyTorch's own backward pass in eval mode can be wrong on a CPU."""
    c = x.shape[1]
    if h.flag():
        return F.batch_norm(x, torch.zeros(c), torch.ones(c), h.weight(c), h.weight(c), training=False)
    return F.batch_norm(torch.cat([x, x.sin()], 0), None, None, h.weight(c), None, training=True, eps=0.1)


def group_norm(h: Hand, x: Tensor) -> Tensor:
    c = x.shape[1]
    x = torch.cat([x, x.sin()], 0)
    return F.group_norm(x, 2 if c % 2 == 0 and h.flag() else 1, h.weight(c), None, eps=0.1)


def cat_parameter(h: Hand, x: Tensor) -> Tensor:
    """A learned row beside the data, as a class token is."""
    d = h.dim(x)
    shape = list(x.shape)
    shape[d] = 1
    return torch.cat([h.weight(*[n if k >= d else 1 for k, n in enumerate(shape)]).expand(shape), x], d)


def einsum(h: Hand, x: Tensor) -> Tensor:
    letters = "abcd"[: x.dim()]
    k = h.dim(x)
    shape = (x.shape[k], h.int(1, 3))
    return torch.einsum(f"{letters},{letters[k]}z->{letters.replace(letters[k], 'z')}", x, h.weight(*shape))


def attention(h: Hand, x: Tensor) -> Tensor:
    y = h.like(x)
    return F.scaled_dot_product_attention(x, y, x.sin(), is_causal=h.flag())


def convolution(h: Hand, x: Tensor) -> Tensor:
    c, o = x.shape[-2], h.int(1, 3)
    return F.conv1d(x, h.weight(o, c, h.int(1, 2)), h.weight(o) if h.flag() else None, padding=1, stride=h.int(1, 2))


def depthwise(h: Hand, x: Tensor) -> Tensor:
    return F.conv1d(x, h.weight(x.shape[-2], 1, 2), padding=1, groups=x.shape[-2])


def convolution_2d(h: Hand, x: Tensor) -> Tensor:
    return F.conv2d(x, h.weight(h.int(1, 3), x.shape[1], h.int(1, 2), h.int(1, 2)), padding=h.int(0, 1) or 1)


def pool(h: Hand, x: Tensor) -> Tensor:
    return F.avg_pool1d(x, 2, 1) if h.flag() else F.max_pool1d(x, 2, 1, padding=1)


def embedding(h: Hand, x: Tensor) -> Tensor:
    """Rows of a table, one for each position, added or concatenated."""
    table = h.weight(h.int(1, 4), x.shape[-1])
    rows = F.embedding(torch.randint(0, len(table), x.shape[:-1]), table)
    return x * rows if h.flag() else torch.cat([x, rows], -1)


def by_argmax(h: Hand, x: Tensor) -> Tensor:
    """Ids decided by the data."""
    return F.embedding(x.argmax(-1), h.weight(x.shape[-1], h.int(1, 3)))


def experts(h: Hand, x: Tensor) -> Tensor:
    """Rows of the first axis go to one of two maps, by sign."""
    flat = x.flatten(1)
    chosen = flat.sum(1) > 0
    out = torch.zeros_like(flat)
    for mask in (chosen, ~chosen):
        rows = torch.where(mask)[0]
        out = out.index_add(0, rows, flat[rows] @ h.weight(flat.shape[1], flat.shape[1]))
    return out.view_as(x)


def made_weight(h: Hand, x: Tensor) -> Tensor:
    """A weight behind a function."""
    w = h.weight(3, x.shape[-1])
    table = [lambda: w.tanh(), lambda: w[:2], lambda: w / w.norm(), lambda: w + w.flip(0), lambda: w.softmax(0)]
    return F.linear(x, table[h.int(0, len(table) - 1)]())


def recurrent(h: Hand, x: Tensor) -> Tensor:
    """The same map along an axis, step by step."""
    d, w = h.dim(x), h.weight(x.shape[-1] if x.dim() > 1 else 1)
    state, steps = torch.zeros_like(x.select(d, 0)), x.unbind(d)
    for step in steps[:4]:
        state = torch.tanh(step + (state * w.sum()))
    return state


def dropout(h: Hand, x: Tensor) -> Tensor:
    return F.dropout(x, 0.4) + 0.1 * x


LAYERS: dict[str, tuple[Needs, Run]] = {
    "linear again": (axes(1), linear),
    "linear": (axes(1), linear),
    "weight first": (axes(2), weight_first),
    "map along axis": (axes(1), along_first),
    "with parameter": (axes(0), with_parameter),
    "layer norm": (axes(1), layer_norm),
    "batch norm": (axes(2, 3), batch_norm),
    "group norm": (axes(2), group_norm),
    "cat parameter": (axes(2), cat_parameter),
    "einsum": (axes(1), einsum),
    "attention": (axes(2), attention),
    "conv1d unbatched": (axes(2, 2), convolution),
    "conv1d": (axes(3, 3), convolution),
    "depthwise": (axes(3, 3), depthwise),
    "conv2d": (axes(4), convolution_2d),
    "pool": (lambda x: x.dim() == 3 and x.shape[-1] > 1, pool),
    "embedding": (axes(1), embedding),
    "by argmax": (axes(2), by_argmax),
    "experts": (axes(2), experts),
    "made weight": (axes(1), made_weight),
    "recurrent": (axes(2), recurrent),
    "dropout": (axes(0), dropout),
}
