"""Data decide who goes where: experts, gathers, sorts, masks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add, fit, param

B, T, D = 4, 3, 6


def hidden(*shape: int) -> Tensor:
    """A linear map of data: [*shape, D], [B, T, D] by default."""
    return nn.Linear(5, D)(torch.randn(*(shape or (B, T)), 5))


def through(f: Callable[[Tensor], Tensor], *shape: int) -> Callable[[], Tensor]:
    return lambda: fit(f(hidden(*shape)))


def experts(n: int = 3) -> list[nn.Module]:
    return [nn.Sequential(nn.Linear(D, 4), nn.ReLU(), nn.Linear(4, D)) for _ in range(n)]


def top_one(by: str, *shape: int) -> Callable[[], Tensor]:
    """Every token goes to its best expert, scaled by the gate."""

    def build() -> Tensor:
        x, gate, nets = hidden(*shape), nn.Linear(D, 3), experts()
        flat = x.reshape(-1, D)
        weight, chosen = gate(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for e, net in enumerate(nets):
            if by == "mask":
                mask = chosen == e
                out[mask] = net(flat[mask]) * weight[mask].unsqueeze(1)
            elif by == "index":
                (rows,) = torch.where(chosen == e)
                out = out.index_add(0, rows, net(flat[rows]) * weight[rows, None])
            elif by == "put":
                rows = torch.where(chosen == e)[0]
                out = out.index_put((rows,), net(flat.index_select(0, rows)) * weight[rows, None])
            else:
                out = out + net(flat) * (weight * (chosen == e)).unsqueeze(1)
        return fit(out.view_as(x) + x)

    return build


def top_two() -> Tensor:
    """Two experts per token; expert weights in one tensor, gathered per token. No expert has many tokens."""
    x, gate, w = hidden(B * T), nn.Linear(D, 4), param(4, D, D, scale=0.4)
    own = torch.eye(4) + torch.eye(4).roll(1, 1)
    score, chosen = (gate(x) + 9 * own.repeat(T, 1)).topk(2, -1)
    out = torch.einsum("nd,nkde->nke", x, w[chosen])
    return fit((out * score.softmax(-1).unsqueeze(-1)).sum(1).view(B, T, D))


def top_two_by_expert() -> Tensor:
    """As Mixtral does it: loop over experts, gather tokens, add back."""
    x, gate, nets = hidden(), nn.Linear(D, 3, bias=False), experts()
    flat = x.view(-1, D)
    score, chosen = gate(flat).softmax(-1).topk(2, -1)
    score = score / score.sum(-1, keepdim=True)
    out = torch.zeros_like(flat)
    for e, net in enumerate(nets):
        slot, token = torch.where(F.one_hot(chosen, 3).permute(2, 1, 0)[e])
        out.index_add_(0, token, net(flat[None, token].reshape(-1, D)) * score[token, slot, None])
    return fit(out.reshape(B, T, D))


def soft_mixture() -> Tensor:
    x, gate, w = hidden(), nn.Linear(D, 3), param(3, D, 4)
    return fit(torch.einsum("btd,edo,bte->bto", x, w, gate(x).softmax(-1)))


def sorted_dispatch() -> Tensor:
    """Tokens sorted by expert, one product per block, and back."""
    x, w = hidden(6), param(2, D, D)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    first, second = x[order].split([2, 4])
    return fit(torch.cat([first @ w[0], second @ w[1]])[order.argsort()])


def capacity() -> Tensor:
    """Switch-style dispatch and combine tensors with dropped tokens; routing within a sample."""
    x, gate, w = hidden(), nn.Linear(D, 2), param(2, D, D)
    probability = gate(x).softmax(-1)
    chosen = F.one_hot(probability.argmax(-1), 2).to(x)
    slot = F.one_hot((chosen.cumsum(1) - 1).clamp(0, 2).long(), 3).to(x) * chosen[..., None]
    inner = torch.einsum("btes,btd->besd", slot, x)
    return fit(torch.einsum("btes,bte,besd->btd", slot, probability, inner @ w))


def pointer() -> Tensor:
    """Copy a position chosen by the data."""
    x = hidden()
    return fit(x[torch.arange(B), torch.tensor([2, 0, 1, 2])])


def last_token() -> Tensor:
    x, lengths = hidden(), torch.tensor([3, 1, 2, 3])
    return fit(x.gather(1, (lengths - 1).view(B, 1, 1).expand(B, 1, D)).squeeze(1))


def ragged_pool() -> Tensor:
    """Segments of one long list: mean by index_add and counts."""
    x, owner = hidden(9), torch.tensor([0, 0, 1, 2, 2, 2, 2, 3, 3])
    total = torch.zeros(4, D).index_add(0, owner, x.tanh())
    return fit(total / owner.bincount().unsqueeze(1))


def masked_select() -> Tensor:
    """The masked entries are one flat list; each sample's share is summed back."""
    x, mask = hidden(B), torch.rand(B, D) > 0.4
    owner = torch.arange(B).unsqueeze(1).expand(B, D)[mask]
    return torch.zeros(B).index_add(0, owner, x[mask].square())


def masked_select_by_larger_mask() -> Tensor:
    """Each sample is picked from by four masks at once."""
    return hidden(B, 1).masked_select(torch.rand(B, 4, D) > 0.4).square()[:10]


def tree() -> Tensor:
    """Different depth for different samples, by Python control flow."""
    layer, x = nn.Linear(D, D), hidden(B)
    rows = []
    for i in range(B):
        h = x[i : i + 1]
        for _ in range(i + 1):
            h = layer(h).tanh()
        rows.append(h)
    return fit(torch.cat(rows))


def drop_path() -> Tensor:
    """Stochastic depth: a block runs on the kept samples only."""
    x, block, keep = hidden(B), nn.Linear(D, D), torch.tensor([0, 2, 3])
    return fit(x.index_add(0, keep, block(x[keep]).tanh(), alpha=4 / 3))


def mixup() -> Tensor:
    """Inputs mixed across samples: the input decides nothing, the net is still per sample."""
    x = torch.randn(B, 5)
    return fit(nn.Linear(D, 2)(nn.Linear(5, D)(0.7 * x + 0.3 * x[torch.randperm(B)]).relu()))


def manifold_mixup() -> Tensor:
    """Hidden states mixed across samples: each loss sees two samples."""
    x = hidden(B)
    return fit(nn.Linear(D, 2)((0.7 * x + 0.3 * x[[2, 0, 3, 1]]).relu()))


add(
    "route",
    "sample",
    {
        "top-one-mask": top_one("mask", B),
        "top-one-index": top_one("index", B),
        "top-one-put": top_one("put", B),
        "top-one-weight": top_one("weight", B),
        "top-one-weight-tokens": top_one("weight"),
        "top-two-gather": top_two,
        "soft-mixture": soft_mixture,
        "sorted-dispatch": sorted_dispatch,
        "capacity": capacity,
        "pointer": pointer,
        "last-token": last_token,
        "mixup-input": mixup,
        "drop-path": drop_path,
        "sort": through(lambda x: x.sort(-1).values * torch.arange(D)),
        "sort-positions": through(lambda x: x.sort(1, descending=True).values[:, :2]),
        "topk": through(lambda x: x.topk(3, -1).values),
        "topk-positions": through(lambda x: x.topk(2, 1, sorted=False).values),
        "kthvalue": through(lambda x: x.kthvalue(2, -1).values),
        "median": through(lambda x: x.median(-1).values),
        "mode": through(lambda x: x.mode(-1).values),
        "gather": through(lambda x: x.gather(1, torch.randint(0, T, (B, 2, D)))),
        "gather-features": through(lambda x: x.gather(2, torch.randint(0, D, (B, T, 4)))),
        "take-along": through(lambda x: x.take_along_dim(x.argsort(-1), -1)),
        "scatter": through(
            lambda x: torch.zeros(B, T, 9).scatter(2, torch.stack([torch.randperm(9)[:D]] * T)[None].expand(B, T, D), x)
        ),
        "scatter-add": through(lambda x: torch.zeros(B, T, 4).scatter_add(2, torch.randint(0, 4, (B, T, D)), x)),
        "index-select-features": through(lambda x: x.index_select(2, torch.tensor([4, 0, 0, 2]))),
        "index-features": through(lambda x: x[..., [1, 3, 1]]),
        "index-positions": through(lambda x: x[:, torch.tensor([2, 0])]),
        "index-both": through(lambda x: x[:, [0, 2, 1], [1, 1, 5]]),
        "index-batch-permuted": through(lambda x: x[torch.tensor([2, 0, 3, 1])]),
        "index-mask-features": through(lambda x: x[..., torch.tensor([True, False] * 3)]),
        "where": through(lambda x: torch.where(x > 0, x, 0.1 * x.exp())),
        "where-sample": through(lambda x: torch.where(torch.rand(B, 1, 1) > 0.5, x, -x)),
        "masked-fill": through(lambda x: x.masked_fill(torch.tensor([[True], [False], [False]]), 0.5) * 2),
        "masked-softmax": through(lambda x: x.masked_fill(torch.rand(B, T, D) > 0.8, -1e9).softmax(-1)),
        "masked-scatter": through(lambda x: x.masked_fill(torch.eye(T, D).bool(), 0.0)),
        "index-fill": through(lambda x: x.index_fill(2, torch.tensor([0, 3]), 0.2)),
        "index-copy": through(lambda x: x.index_copy(1, torch.tensor([1]), x[:, :1] * 2)),
        "cumsum": through(lambda x: x.cumsum(1)),
        "cumprod": through(lambda x: x.cumprod(2)),
        "cummax": through(lambda x: x.cummax(1).values),
        "cummin": through(lambda x: x.cummin(-1).values),
        "logcumsumexp": through(lambda x: x.logcumsumexp(1)),
        "roll": through(lambda x: x.roll((1, -2), (1, 2)) * x),
        "flip": through(lambda x: x.flip(1, 2) * x),
        "rot90": through(lambda x: x.rot90(1, (1, 2))),
        "bucketed": through(lambda x: x * torch.bucketize(x.detach(), torch.linspace(-1, 1, 4))),
    },
)

add(
    "route",
    None,
    {
        "top-one-mask-tokens": top_one("mask"),
        "top-one-index-tokens": top_one("index"),
        "top-two-by-expert": top_two_by_expert,
        "ragged-pool": ragged_pool,
        "masked-select": masked_select,
        "masked-select-larger-mask": masked_select_by_larger_mask,
        "tree": tree,
        "manifold-mixup": manifold_mixup,
        "repeat-interleave-ragged": through(lambda x: x.flatten(1).repeat_interleave(torch.tensor([1, 2, 0, 3]), 0)),
        "duplicated-samples": through(lambda x: x[[0, 0, 1, 3, 3]]),
        "sort-batch": through(lambda x: x.sort(0).values, B),
        "gather-batch": through(lambda x: x.gather(0, torch.randint(0, B, (3, D))), B),
        "cumsum-batch": through(lambda x: x.cumsum(0), B),
        "max-over-batch": through(lambda x: x - x.max(0).values, B),
        "roll-batch": through(lambda x: x * x.roll(1, 0), B),
        "roll-flat": through(lambda x: x * x.roll(1)),
        "take": through(lambda x: x.take(torch.randint(0, B * D, (3, 2))), B),
        "masked-scatter-batch": through(lambda x: x.masked_scatter(torch.rand(B, D) > 0.6, x.flip(0).tanh()), B),
    },
)

add(
    "route",
    None,
    {
        "scatter-reduce": through(
            lambda x: torch.ones(B, T, 4).scatter_reduce(2, torch.randint(0, 4, (B, T, D)), x, "amax")
        ),
    },
)
