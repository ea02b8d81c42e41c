"""Graphs, sets and segments of different sizes in one list: scatters, gathers, segments, sparse matrices."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tests.zoo.registry import add, add_ways, fit, param

B, T, D, N = 4, 3, 6, 9
# Which of the B graphs each of the N nodes is in, and edges within graphs.
SIZES = (2, 1, 3, 3)
OWNER = torch.arange(B).repeat_interleave(torch.tensor(SIZES))
SOURCE = torch.tensor([0, 1, 3, 4, 5, 6, 7, 8, 8])
TARGET = torch.tensor([1, 0, 4, 5, 3, 7, 8, 6, 7])


def wide(index: Tensor) -> Tensor:
    """[n] as [n, D], without memory of its own."""
    return index[:, None].expand(-1, D)


def nodes() -> Tensor:
    return nn.Linear(5, D)(torch.randn(N, 5)).tanh()


def hidden() -> Tensor:
    return nn.Linear(5, D)(torch.randn(B, T, 5))


def pooled(x: Tensor) -> Tensor:
    """[N, D] to [B, D]."""
    return torch.zeros(B, D).scatter_add(0, wide(OWNER), nn.Linear(D, D)(x))


def reduced(how: str, include: bool = False) -> Tensor:
    start = torch.ones(B, D)
    return start.scatter_reduce(0, wide(OWNER), nn.Linear(D, D)(nodes()), how, include_self=include)


def messages() -> Tensor:
    """Two rounds of message passing and a pool."""
    x = nodes()
    for _ in range(2):
        x = (x + torch.zeros(N, D).scatter_add(0, wide(TARGET), nn.Linear(D, D)(x[SOURCE]))).tanh()
    return pooled(x)


def complete() -> Tensor:
    """Graphs in which every node reads all others: more readers than rows are stacked for."""
    owner = torch.tensor([0, 1]).repeat_interleave(torch.tensor([3, 11]))
    source, target = (owner[:, None] == owner).nonzero().unbind(1)
    x = nn.Linear(5, D)(torch.randn(14, 5)).tanh()
    x = torch.zeros(14, D).index_add(0, target, nn.Linear(D, D)(x.index_select(0, source)).relu() / 14)
    return torch.zeros(2, D).index_add(0, owner, x / 14)


def attention() -> Tensor:
    """Edges weighted by a softmax over those that lead to one node."""
    x, score = nodes(), nn.Linear(2 * D, 1)
    weight = score(torch.cat([x[SOURCE], x[TARGET]], 1)).squeeze(1).exp()
    total = torch.full((N,), 0.1).scatter_add(0, TARGET, weight)
    return pooled(torch.zeros(N, D).index_add(0, TARGET, x[SOURCE] * (weight / total[TARGET])[:, None]))


def blocks() -> Tensor:
    """An adjacency matrix of all graphs, with weights."""
    return torch.block_diag(*[torch.rand(k, k) + 0.1 for k in SIZES])


def adjacent(product: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
    return lambda: pooled(product(blocks().to_sparse(), nodes()).tanh())


def compressed() -> Tensor:
    index = torch.block_diag(*[torch.ones(k, k) for k in SIZES]).nonzero()
    starts = torch.searchsorted(index[:, 0].contiguous(), torch.arange(N + 1))
    with unready():
        matrix = torch.sparse_csr_tensor(starts, index[:, 1], torch.rand(len(index)), (N, N))
    return pooled((matrix @ nodes()).tanh())


@contextmanager
def unready() -> Iterator[None]:
    """PyTorch warns once that it may still change these."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def indexed(how: str, start: float = 1.0, **options: bool) -> Tensor:
    with unready():
        return torch.full((B, D), start).index_reduce(0, OWNER, nn.Linear(D, D)(nodes()), how, **options)


LENGTHS = torch.tensor(SIZES)
REDUCTIONS = ("sum", "mean", "amax", "amin", "prod")
add_ways(
    "graph",
    "sample",
    {
        "add-pool": lambda: pooled(nodes()),
        **{f"pool-{how}": lambda how=how: reduced(how) for how in REDUCTIONS},
        "pool-included": lambda: reduced("mean", include=True),
        "messages": messages,
        "attention": attention,
        "sparse-mm": adjacent(torch.sparse.mm),
        "sparse-addmm": adjacent(lambda a, x: torch.sparse.addmm(x, a, x, alpha=2, beta=0.5)),
        "sparse-matmul": adjacent(lambda a, x: a @ x),
        "index-mean": lambda: indexed("mean"),
        "index-prod": lambda: indexed("prod"),
        "index-amax": lambda: indexed("amax", -9.0, include_self=False),
        **{f"segment-{how}": lambda how=how: segment(how) for how in ("sum", "mean", "max", "min")},
        "segment-offsets": lambda: segment("sum", offsets=torch.tensor([0, 2, 3, 6, 9])),
        "rows-placed": lambda: torch.zeros(6, D).scatter(0, wide(torch.tensor([5, 0, 3, 1])), four())[[5, 0, 3, 1]],
        "rows-gathered": lambda: four().gather(0, wide(OWNER)).tanh()[[0, 2, 3, 6]],
    },
)
add_ways("graph", "sample", {"complete": complete}, dtypes=(torch.float64,))
add("graph", "sample", {"compressed": lambda: fit(compressed())})


def segment(how: str, **where: Tensor) -> Tensor:
    return torch.segment_reduce(nn.Linear(D, D)(nodes()), how, axis=0, **(where or {"lengths": LENGTHS}))


def four() -> Tensor:
    return nn.Linear(5, D)(torch.randn(4, 5))


def along(dim: int, how: str) -> Callable[[], Tensor]:
    """Within samples: positions or features are scattered to four places."""

    def build() -> Tensor:
        x = hidden()
        shape = [4 if d == dim else n for d, n in enumerate(x.shape)]
        return torch.ones(shape).scatter_reduce(dim, torch.randint(0, 4, x.shape), x, how)

    return build


def second() -> Tensor:
    """The batch second: positions [T, B, D] of each sample go where the data say."""
    x = nn.Linear(5, D)(torch.randn(T, B, 5))
    out = torch.zeros(2, B, D).scatter_add(0, torch.randint(0, 2, (T, B, D)), x)
    return out.scatter_reduce(0, torch.randint(0, 2, (T, B, D)), x.sin(), "amax").transpose(0, 1)


def merged() -> Tensor:
    """Positions of all samples in one list, each element with an index of its own, within its sample."""
    x = hidden().reshape(B * T, D)
    index = torch.randint(0, 2, (B * T, D)) + 2 * torch.arange(B).repeat_interleave(T)[:, None]
    out = torch.zeros(2 * B, D).scatter_add(0, index, x)
    back = torch.arange(B).repeat_interleave(2)[:, None] * T + torch.randint(0, T, (2 * B, D))
    return (out + x.gather(0, back).tanh()).view(B, 2, D)


def batched_segments() -> Tensor:
    lengths = torch.tensor([[1, 2]] * B)
    return torch.segment_reduce(hidden(), "mean", lengths=lengths, axis=1)


add_ways(
    "scattered",
    "sample",
    {
        **{f"positions-{how}": along(1, how) for how in REDUCTIONS},
        "features-amin": along(2, "amin"),
        "second": second,
        "merged": merged,
        "segments": batched_segments,
    },
)


def shared_nodes(how: str) -> Tensor:
    """Some rows go to several samples, or come from them."""
    x, out = four(), torch.zeros(B, D)
    if how == "gather":
        return x.gather(0, wide(torch.tensor([0, 0, 1, 3]))).tanh()
    if how == "gather-elements":
        return x.gather(0, torch.randint(0, 4, (B, D))).tanh()
    if how == "scatter-elements":
        return out.scatter_add(0, torch.randint(0, B, (4, D)), x)
    if how == "scatter":
        return out.scatter(0, wide(torch.tensor([2, 0, 3, 1])), x) + x
    return torch.sparse.mm((torch.rand(B, 4) * (torch.rand(B, 4) > 0.4)).to_sparse(), x)


add(
    "shared",
    None,
    {
        how: lambda how=how: fit(shared_nodes(how))
        for how in ("gather", "gather-elements", "scatter-elements", "scatter", "sparse")
    }
    | {
        "scatter-of-parameter": lambda: fit(four().scatter_add(0, wide(torch.tensor([1, 1, 2])), param(3, D))),
        "scatter-narrow": lambda: fit(four().scatter(1, torch.tensor([[0, 2]] * B), param(B, 2))),
        "sparse-vector": lambda: (torch.eye(B).to_sparse() @ four().sum(1)).square(),
        "sparse-features": lambda: fit(nn.Linear(D, 3)(torch.eye(B).to_sparse() @ param(B, D))),
        "scatter-value": lambda: fit(four().scatter(0, wide(torch.tensor([2, 0])), 0.5)),
    },
)
