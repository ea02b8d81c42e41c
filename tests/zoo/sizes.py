"""The same few layers at sizes that tip the choice between routes: many positions, wide layers, many losses."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add, fit, param


def linear(*lead: int, i: int, o: int, batch_dim: int = 0) -> Callable[[], Tensor]:
    """Two linear layers, one from ``i`` to ``o`` and one back."""
    return lambda: fit(nn.Linear(o, i)(nn.Linear(i, o)(torch.randn(*lead, i)).tanh()), batch_dim)


def tasks(n: int, positions: int, i: int, o: int) -> Callable[[], list[Tensor]]:
    """``n`` scalar losses that share all positions: rows without a batch axis."""

    def build() -> list[Tensor]:
        hidden = nn.Linear(i, o)(torch.randn(positions, i)).tanh()
        return [fit(nn.Linear(o, 2)(hidden)).mean() for _ in range(n)]

    return build


def token_tasks(b: int, t: int, n: int) -> Tensor:
    """[b, n] losses over t positions: several rows with a batch axis."""
    hidden = nn.Linear(5, 6)(torch.randn(b, t, 5)).tanh()
    return torch.stack([fit(nn.Linear(6, 2)(hidden)) for _ in range(n)], 1)


def conv(size: int, i: int, o: int, k: int, b: int = 3, **options: int) -> Callable[[], Tensor]:
    def build() -> Tensor:
        layer, x = nn.Conv2d(i, o, k, **options), torch.randn(b, i, size, size)
        return fit(layer(nn.Conv2d(i, i, 1)(x)).tanh())

    return build


def lookup(b: int, t: int, vocabulary: int, d: int, head: bool = False) -> Callable[[], Tensor]:
    def build() -> Tensor:
        table, ids = nn.Embedding(vocabulary, d), torch.randint(0, vocabulary, (b, t))
        x = nn.Linear(d, d)(table(ids)).tanh()
        return fit(x @ table.weight.t()) if head else fit(x)

    return build


def reused(times: int, t: int) -> Callable[[], Tensor]:
    """Positions of all uses add up."""

    def build() -> Tensor:
        layer, x = nn.Linear(6, 6), torch.randn(3, t, 6)
        for _ in range(times):
            x = layer(x).tanh()
        return fit(x)

    return build


def uses_of_unlike_length() -> Tensor:
    """One weight on whole sequences, on their means, and on a row that all samples share."""
    layer, x = nn.Linear(6, 6), torch.randn(4, 7, 6)
    return fit(layer(x)) + fit(layer(x.mean(1)).tanh()) + fit(x[:, 0] * layer(torch.randn(1, 6)).sin())


def uses_of_unlike_rows() -> list[Tensor]:
    """One weight under per-sample losses, under a task loss, and under both."""
    layer, x = nn.Linear(5, 5), torch.randn(4, 5)
    hidden = layer(x).tanh()
    return [fit(layer(hidden)), fit(layer(torch.randn(3, 5))).mean(), fit(hidden).sum()]


def uses_of_other_batches() -> Tensor:
    """One weight under batches of different length, whose losses overlap."""
    layer, x = nn.Linear(5, 5), torch.randn(4, 5)
    first = fit(layer(x))
    second = torch.zeros(4).index_add(0, torch.tensor([3, 1]), fit(layer(layer(torch.randn(2, 5)).tanh())))
    return first + second


def shared_by_all() -> Tensor:
    """A net of learned prompts: everything below the data is the same for all samples."""
    prompt, net = param(2, 5), nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5))
    return fit(nn.Linear(5, 3)(torch.cat([net(prompt).expand(4, 2, 5), torch.randn(4, 3, 5)], 1)).tanh())


def no_expert_called() -> Tensor:
    """An expert that gets no tokens at all."""
    x, a, b = nn.Linear(5, 6)(torch.randn(4, 5)), nn.Linear(6, 6), nn.Linear(6, 6)
    chosen = torch.zeros(4, dtype=torch.long)
    out = torch.zeros_like(x)
    for e, net in enumerate((a, b)):
        (rows,) = torch.where(chosen == e)
        out = out.index_add(0, rows, net(x[rows]))
    return fit(out)


def empty_part() -> Tensor:
    hidden = nn.Linear(5, 6)(torch.randn(4, 5))
    return fit(torch.cat([hidden[:, :0], hidden, hidden[:, 6:].exp()], 1))


def parameter_without_elements() -> Tensor:
    """A reduction of nothing but an empty parameter's share."""
    none, net = param(0, 5), nn.Linear(5, 3)
    return fit(net(torch.randn(4, 5))) + (torch.randn(4, 5) @ none.t()).sum(1) + none.prod(0).sum()


def strided_leaf() -> Tensor:
    """Leaves that are not contiguous."""
    w = nn.Parameter(torch.randn(3, 5).t())
    k = nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    return fit(torch.randn(4, 5) @ w) + fit(F.conv2d(torch.randn(4, 3, 3, 3), k))


def expanded_losses() -> Tensor:
    return nn.Linear(5, 1)(torch.randn(4, 5)).square().mean().expand(4)


add(
    "size",
    "sample",
    {
        "many-positions-thin": linear(3, 60, i=2, o=3),
        "few-positions-wide": linear(3, 2, i=48, o=40),
        "many-positions-wide": linear(2, 30, i=24, o=32),
        "narrow-to-wide": linear(4, 9, i=1, o=50),
        "wide-to-narrow": linear(4, 9, i=50, o=1),
        "many-losses": linear(64, i=6, o=5),
        "many-losses-positions": linear(33, 7, i=5, o=6),
        "many-losses-batch-second": linear(6, 33, i=5, o=6, batch_dim=1),
        "one-loss-many-positions": linear(1, 70, i=4, o=3),
        "primes": linear(7, 11, i=13, o=5),
        "token-tasks": lambda: token_tasks(3, 4, 3),
        "token-tasks-one-position": lambda: token_tasks(5, 1, 4),
        "conv-large-image": conv(16, 2, 3, 3),
        "conv-many-channels": conv(4, 16, 20, 3),
        "conv-pointwise-wide": conv(3, 30, 20, 1),
        "conv-pointwise-large": conv(14, 2, 2, 1),
        "conv-depthwise-large": conv(12, 6, 6, 3, groups=6),
        "conv-kernel-as-image": conv(5, 3, 4, 5),
        "conv-many-samples": conv(4, 2, 3, 2, b=24),
        "lookup-large-table": lookup(3, 6, 500, 4),
        "lookup-long": lookup(3, 60, 5, 3),
        "lookup-wide": lookup(3, 4, 7, 50),
        "lookup-many": lookup(40, 2, 9, 3),
        "tied-large-table": lookup(3, 4, 100, 4, head=True),
        "tied-long": lookup(3, 30, 5, 3, head=True),
        "reused-often": reused(12, 1),
        "reused-positions": reused(4, 9),
        "no-expert-called": no_expert_called,
        "empty-part": empty_part,
        "parameter-without-elements": parameter_without_elements,
        "strided-leaf": strided_leaf,
    },
)

add(
    "size",
    None,
    {
        "tasks-many-positions": tasks(3, 50, 3, 4),
        "tasks-few-positions": tasks(4, 3, 30, 20),
        "tasks-one-position": tasks(5, 1, 6, 7),
        "tasks-many": tasks(20, 6, 5, 4),
        "uses-of-unlike-length": uses_of_unlike_length,
        "uses-of-unlike-rows": uses_of_unlike_rows,
        "uses-of-other-batches": uses_of_other_batches,
        "shared-by-all": shared_by_all,
        "expanded-losses": expanded_losses,
    },
)
