"""Each loss owns as many tokens as the data say: padding that is dropped, experts, frames that are kept."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from tests.zoo.registry import add, add_ways, fit, param

B, T, D = 4, 5, 6
OWNER = torch.arange(B).repeat_interleave(T).view(B, T)
# Five tokens, none, one and three; and one that keeps most.
KEPT = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 1, 1, 0]]).bool()
MOST = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
PLACES = tuple(KEPT.nonzero()[[3, 7, 0, 8, 1, 5, 2, 6]].T)


def hidden(*shape: int) -> Tensor:
    return nn.Linear(5, D)(torch.randn(*(shape or (B, T)), 5))


def pooled(tokens: Tensor, owner: Tensor, start: Tensor | None = None) -> Tensor:
    """[B, *]: the tokens of each sample added up, and something of its own, as a sample may have none."""
    start = nn.Linear(3, tokens.shape[1])(torch.randn(B, 3)) if start is None else start
    return start.index_add(0, owner, tokens)


def dropped(*layers: Callable[[Tensor], Tensor], keep: Tensor = KEPT) -> Callable[[], Tensor]:
    """Padding is dropped in front of some layers, and tokens are summed per sample."""

    def build() -> Tensor:
        x = hidden()[keep]
        for layer in layers:
            x = layer(x)
        return pooled(x, OWNER[keep])

    return build


def lazily(make: Callable[[], Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """A layer that is made when it is called, under the seed of its case."""
    return lambda x: make()(x)


def shuffled() -> Tensor:
    """Tokens of different samples lie in any order."""
    order = torch.randperm(int(KEPT.sum()))
    x = nn.Linear(D, 4)(hidden()[KEPT][order].tanh())
    return pooled(x, OWNER[KEPT][order])


def put_back(keep: Tensor) -> Callable[[], Tensor]:
    """Results go back to their places; attention over all of them follows."""

    def build() -> Tensor:
        x = hidden()
        out = torch.zeros(B, T, D).index_put((keep.nonzero(as_tuple=True)), nn.Linear(D, D)(x[keep]).relu())
        return F.scaled_dot_product_attention(out, nn.Linear(D, D)(out), out + 0.1 * x[:, :1])

    return build


def products_of_gaps() -> Tensor:
    """Attention, unfused, among places of which some were never filled, without any residual."""
    x = hidden()
    filled = torch.zeros(B, T, D).masked_scatter(MOST[..., None], nn.Linear(D, D)(x[MOST]))
    scores = filled @ nn.Linear(D, D)(filled).mT
    return scores.softmax(-1) @ filled


def rarely() -> Tensor:
    """A branch for few tokens, met by none that has all: gaps stay."""
    x = hidden()
    few = torch.zeros(B * T, D).index_copy(0, torch.tensor([2, 11, 17]), nn.Linear(D, D)(x.view(-1, D)[[2, 11, 17]]))
    return (few.view(B, T, D) @ param(D, 3)).tanh() @ param(3, 2)


def embedded() -> Tensor:
    ids = torch.randint(0, 7, (B, T))
    return pooled(nn.Embedding(7, D, padding_idx=2)(ids[KEPT]).tanh(), OWNER[KEPT])


def tied() -> Tensor:
    """One table embeds tokens that were kept and scores them."""
    ids, table = torch.randint(0, 7, (B, T))[KEPT], param(7, D)
    return pooled(nn.Linear(D, D)(F.embedding(ids, table)).relu() @ table.t(), OWNER[KEPT])


def frames(conv: nn.Module, *size: int) -> Tensor:
    """Some frames of each sample are looked at."""
    x = torch.tanh(nn.Linear(1, 3)(torch.randn(B, T, *size, 1))).movedim(-1, 2)
    return pooled(conv(x[KEPT]).flatten(1), OWNER[KEPT])


def experts(residual: bool = True, layers: int = 1, n: int = 3) -> Tensor:
    """Blocks in which each token goes to an expert, and tokens of a sample are mixed afterwards."""
    x = hidden()
    for _ in range(layers):
        flat, chosen = x.reshape(-1, D), torch.randint(0, n, (B * T,))
        out = torch.zeros_like(flat)
        for e in range(n):
            (rows,) = torch.where(chosen == e)
            expert = nn.Sequential(nn.Linear(D, 4), nn.ReLU(), nn.Linear(4, D))
            out = out.index_add(0, rows, expert(F.layer_norm(flat[rows], (D,), param(D), param(D))))
        x = (x + out.view_as(x)) if residual else out.view_as(x)
        x = x + F.scaled_dot_product_attention(x, x, nn.Linear(D, D)(x))
    return x


def time_first() -> Tensor:
    """Tokens of all samples at each time follow one another."""
    x = hidden(T, B).reshape(-1, D)
    out = torch.zeros_like(x)
    for rows in torch.randperm(T * B).split(7):
        out = out.index_add(0, rows, nn.Linear(D, D)(x[rows]).tanh())
    return (nn.Linear(D, D)(out).view(T, B, D) + x.view(T, B, D)).transpose(0, 1)


def places(computed: bool = False) -> Tensor:
    """Each expert has a number of places; tokens that find none are dropped."""
    x, w, capacity = hidden().view(-1, D), param(3, D, D), 6
    chosen = torch.randint(0, 3, (B * T,))
    slot = (F.one_hot(chosen, 3).cumsum(0) - 1).gather(1, chosen[:, None]).squeeze(1)
    kept = slot < capacity
    at = (chosen * capacity + slot)[kept]
    taken = torch.zeros(3 * capacity, D).index_copy(0, at, x[kept]).view(3, capacity, D)
    out = torch.bmm(taken, w.tanh() if computed else w).relu() @ param(3, D, D)
    return (x.index_add(0, kept.nonzero().squeeze(1), out.view(-1, D)[at])).view(B, T, D)


def shared_layer() -> Tensor:
    """One layer for tokens of two routes that overlap, and for whole samples."""
    x, layer = hidden(), nn.Linear(D, D)
    first, second = KEPT, torch.rand(B, T) > 0.5
    out = pooled(layer(x[first]), OWNER[first], layer(x.mean(1)))
    return pooled(layer(x[second]).tanh(), OWNER[second], out)


def shared_table() -> Tensor:
    """One table for ids of two selections."""
    ids, table = torch.randint(0, 7, (B, T)), nn.Embedding(7, D)
    other = torch.rand(B, T) > 0.4
    return pooled(table(ids[other]).sin(), OWNER[other], pooled(table(ids[KEPT]), OWNER[KEPT], table(ids).mean(1)))


def computed_weight() -> Tensor:
    return pooled(F.linear(hidden()[KEPT], param(4, D).tanh(), param(4)), OWNER[KEPT])


def placed(layer: Callable[[Tensor], Tensor]) -> Tensor:
    """Places that are known beforehand, in no order."""
    x = nn.Linear(1, 3)(torch.randn(B, T, 3, 3, 1)).tanh()
    return pooled(layer(x[PLACES]).flatten(1), PLACES[0])


def alone() -> Tensor:
    """All tokens are of one sample; the others have what is theirs."""
    return pooled(nn.Linear(D, 3)(hidden(7)), torch.full((7,), 2))


add_ways(
    "ragged",
    "sample",
    {
        "dropped": dropped(lazily(lambda: nn.Linear(D, 4))),
        "dropped-little": dropped(lazily(lambda: nn.Linear(D, 4)), torch.sin, keep=MOST),
        "dropped-net": dropped(lazily(lambda: nn.Linear(D, 4)), F.gelu, lazily(lambda: nn.Linear(4, 3, bias=False))),
        "dropped-norm": dropped(lazily(lambda: nn.LayerNorm(D)), lazily(lambda: nn.RMSNorm(D))),
        "dropped-groups": dropped(lazily(lambda: nn.GroupNorm(2, D))),
        "dropped-scale": dropped(lambda x: x * param().exp() + param(1, D)),
        "dropped-weight-norm": dropped(lazily(lambda: weight_norm(nn.Linear(D, 4)))),
        "dropped-bilinear": dropped(lambda x: nn.Bilinear(D, D, 3)(x, x.sin())),
        "shuffled": shuffled,
        "put-back": put_back(KEPT),
        "put-back-most": put_back(MOST),
        "products-of-gaps": products_of_gaps,
        "rarely": rarely,
        "embedded": embedded,
        "tied": tied,
        "frames": lambda: frames(nn.Conv2d(3, 2, 2), 3, 3),
        "frames-1d": lambda: frames(nn.Conv1d(3, 3, 2, groups=3, padding=1), 4),
        "frames-1d-pointwise": lambda: frames(nn.Conv1d(3, 2, 1), 4),
        "frames-transposed": lambda: frames(nn.ConvTranspose1d(3, 2, 2, stride=2), 3),
        "experts": experts,
        "experts-layers": lambda: experts(layers=2),
        "experts-alone": lambda: experts(residual=False),
        "time-first": time_first,
        "places": places,
        "shared-layer": shared_layer,
        "shared-table": shared_table,
        "computed-weight": computed_weight,
        "alone": alone,
        "placed": lambda: placed(nn.Linear(3, 2)),
        "placed-frames": lambda: placed(lambda x: nn.Conv2d(3, 2, 2)(x.movedim(-1, 1))),
        "placed-table": lambda: placed(lambda x: x.flatten(1) * nn.Embedding(B, 27)(PLACES[0])),
    },
)
add("ragged", None, {"places-computed": lambda: fit(places(computed=True))})
