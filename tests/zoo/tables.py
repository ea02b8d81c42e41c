"""Embeddings: lookups, bags, tied heads, positions."""

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add, fit, param

B, T, V, D = 4, 5, 7, 6


def ids(*shape: int, low: int = 0) -> Tensor:
    return torch.randint(low, V, shape or (B, T))


def read(table: nn.Module, *shape: int) -> Tensor:
    """Look up, apply a layer, mean over positions."""
    return fit(nn.Linear(D, 3)(table(ids(*shape)).tanh()))


def token_losses(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(1)


def bag(mode: str, weighted: bool = False, offsets: bool = False, **options: object) -> Callable[[], Tensor]:
    def build() -> Tensor:
        table = nn.EmbeddingBag(V, D, mode=mode, **options)
        weights = torch.rand(B * T if offsets else (B, T)) if weighted else None  # type: ignore[arg-type]
        if offsets:
            out = table(ids(B * T), torch.tensor([0, 3, 4, 12]), per_sample_weights=weights)
        else:
            out = table(ids(), per_sample_weights=weights)
        return fit(nn.Linear(D, 3)(out.tanh()))

    return build


def bag_of_activations(**options: int) -> Tensor:
    """Per-sample weights that are themselves learned."""
    table, score = nn.EmbeddingBag(V, D, mode="sum", **options), nn.Linear(3, T)  # type: ignore[arg-type]
    return fit(table(ids(), per_sample_weights=score(torch.randn(B, 3)).softmax(1)))


def tied(bias: bool = False) -> Tensor:
    """Embedding and head share one table."""
    table, layer = nn.Embedding(V, D), nn.Linear(D, D)
    extra = param(V) if bias else None
    tokens = ids()
    return token_losses(F.linear(layer(table(tokens)).tanh(), table.weight, extra), ids())


def tied_per_token() -> Tensor:
    table = nn.Embedding(V, D)
    logits = nn.Linear(D, D)(table(ids(2, 3))) @ table.weight.t()
    return F.cross_entropy(logits.flatten(0, 1), ids(6), reduction="none").view(2, 3)


def tied_classifier() -> Tensor:
    """One id per sample, so both uses have a single position."""
    table = nn.Embedding(V, D)
    return F.cross_entropy(nn.Linear(D, D)(table(ids(B))) @ table.weight.t(), ids(B), reduction="none")


def turned(table_turned: bool, head_turned: bool, *lead: int, first: bool = False) -> Callable[[], Tensor]:
    """A square weight as a table and as a map, each of them as it is or transposed; the map may stand first."""

    def build() -> Tensor:
        w = param(D, D)
        rows = F.embedding(torch.randint(0, D, lead), w.t() if table_turned else w).tanh()
        matrix = w.t() if head_turned else w
        out = (matrix @ rows.mT).mT if first else rows @ matrix
        return fit(out + nn.Linear(D, D)(rows))

    return build


def turned_oblong(first: bool = False) -> Tensor:
    """A leaf [D, V] whose transpose is the table."""
    w = param(D, V)
    rows = F.embedding(ids(), w.t()).tanh()
    return fit((w.t() @ rows.mT).mT if first else rows @ w)


def two_lookups() -> Tensor:
    table = nn.Embedding(V, D)
    return (table(ids(B)) * table(ids(B))).sum(1)


def small_gpt(batch_second: bool = False) -> Tensor:
    tokens, table, places = ids(), nn.Embedding(V, 8), nn.Embedding(9, 8)
    block = nn.TransformerEncoderLayer(8, 2, 12, 0.1, batch_first=not batch_second, norm_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.get_default_dtype())
    x = table(tokens) + places(torch.arange(T).unsqueeze(0))
    x = block(x.transpose(0, 1), mask).transpose(0, 1) if batch_second else block(x, mask)
    return token_losses(nn.LayerNorm(8)(x) @ table.weight.t(), ids())


def word2vec() -> Tensor:
    inner, outer = nn.Embedding(V, D), nn.Embedding(V, D)
    scores = torch.einsum("bd,bkd->bk", inner(ids(B)), outer(ids(B, 4)))
    return F.binary_cross_entropy_with_logits(scores, torch.randint(0, 2, (B, 4)).to(scores), reduction="none").sum(1)


def factorisation() -> Tensor:
    users, items, user_bias, item_bias = nn.Embedding(V, D), nn.Embedding(V, D), nn.Embedding(V, 1), param(V)
    u, i = ids(B), ids(B)
    score = (users(u) * items(i)).sum(1) + user_bias(u).squeeze(1) + item_bias[i] + param()
    return (score - torch.randn(B)).square()


def graph_convolution() -> Tensor:
    """Nodes of small graphs, messages by gather and scatter within a sample."""
    x, edges = nn.Linear(3, D)(torch.randn(B, T, 3)), torch.randint(0, T, (B, 6, 2))
    source, target = (edges[..., k, None].expand(-1, -1, D) for k in (0, 1))
    messages = nn.Linear(D, D)(x.gather(1, source)).relu()
    return fit(x.scatter_add(1, target, messages))


def graph_packed() -> Tensor:
    """Nodes of all graphs in one list, as graph libraries do: edges stay within a graph."""
    owner, x = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3]), nn.Linear(3, D)(torch.randn(8, 3))
    source, target = torch.tensor([0, 1, 2, 3, 4, 6]), torch.tensor([1, 0, 3, 4, 2, 7])
    x = x.index_add(0, target, nn.Linear(D, D)(x[source]).relu())
    return torch.zeros(4).index_add(0, owner, nn.Linear(D, 1)(x.tanh()).squeeze(1)).square()


def feature_table() -> Tensor:
    """Categorical columns, each with its own table, beside numbers."""
    tables = [nn.Embedding(n, d) for n, d in ((3, 2), (5, 3), (7, 2))]
    columns = [table(torch.randint(0, table.num_embeddings, (B,))) for table in tables]
    return fit(nn.Linear(9, 3)(torch.cat([*columns, torch.randn(B, 2)], 1)).relu())


def hashed() -> Tensor:
    """Two ids per token share rows of one table."""
    table, tokens = nn.Embedding(4, D), ids()
    return fit(table(tokens % 4) + table((tokens * 3 + 1) % 4))


def quantised() -> Tensor:
    """Vector quantisation: nearest code, straight-through, codebook and commitment terms."""
    codes, z = param(V, D), nn.Linear(3, D)(torch.randn(B, 3))
    nearest = codes[torch.cdist(z.detach(), codes.detach()).argmin(1)]
    through = z + (nearest - z).detach()
    return fit(through) + (nearest - z.detach()).square().sum(1) + 0.2 * (z - nearest.detach()).square().sum(1)


def relative_bias() -> Tensor:
    """A bias table read by distance, [T, T] lookups, broadcast over the batch."""
    table, x = nn.Embedding(2 * T - 1, 1), nn.Linear(3, D)(torch.randn(B, T, 3))
    distance = torch.arange(T)[:, None] - torch.arange(T)[None] + T - 1
    return fit((x @ x.mT + table(distance).squeeze(-1)).softmax(-1) @ x)


add(
    "table",
    "sample",
    {
        "lookup": lambda: read(nn.Embedding(V, D)),
        "lookup-one": lambda: read(nn.Embedding(V, D), B),
        "lookup-grid": lambda: read(nn.Embedding(V, D), 3, 2, 4),
        "lookup-batch-second": lambda: fit(nn.Embedding(V, D)(ids(T, B)).tanh(), batch_dim=1),
        "padding": lambda: read(nn.Embedding(V, D, padding_idx=2)),
        "padding-and-head": lambda: fit(nn.Embedding(3, D, padding_idx=0)(torch.tensor([[0, 1], [0, 0], [2, 1]]))),
        "by-frequency": lambda: read(nn.Embedding(V, D, scale_grad_by_freq=True)),
        "max-norm-frozen-rows": lambda: read(nn.Embedding.from_pretrained(torch.randn(V, D), freeze=False)),
        "repeated-ids": lambda: fit(nn.Embedding(V, D)(torch.tensor([[1, 1, 1], [1, 2, 1]]))),
        "indexed-parameter": lambda: fit(param(V, D)[ids()].tanh()),
        "index-select": lambda: fit(param(V, D).index_select(0, ids(B)).tanh()),
        "indexed-bias": lambda: (param(V)[ids(B)] * nn.Linear(3, 1)(torch.randn(B, 3)).squeeze(1)).square(),
        "one-hot": lambda: fit(F.one_hot(ids(), V).to(torch.get_default_dtype()) @ param(V, D)),
        "bag-sum": bag("sum"),
        "bag-mean": bag("mean"),
        "bag-weighted": bag("sum", weighted=True),
        "bag-padding": bag("mean", padding_idx=1),
        "bag-offsets": bag("sum", offsets=True),
        "bag-offsets-mean": bag("mean", offsets=True),
        "bag-offsets-weighted": bag("sum", weighted=True, offsets=True),
        "bag-max": bag("max"),
        "bag-max-padding": bag("max", offsets=True, padding_idx=1),
        "bag-max-empty": lambda: fit(nn.EmbeddingBag(V, D, mode="max")(ids(B * T), torch.tensor([0, 3, 3, 12])).tanh()),
        "bag-learned-weights": bag_of_activations,
        "bag-learned-padding": lambda: bag_of_activations(padding_idx=2),
        "tied": tied,
        "tied-bias": lambda: tied(bias=True),
        "tied-per-token": tied_per_token,
        "tied-classifier": tied_classifier,
        "two-lookups": two_lookups,
        "small-gpt": small_gpt,
        "small-gpt-batch-second": lambda: small_gpt(batch_second=True),
        "positions-one-row": lambda: fit(nn.Embedding(V, D)(ids()) * nn.Embedding(T, D)(torch.arange(T)[None])),
        "positions-flat": lambda: fit((nn.Embedding(V, D)(ids()) + nn.Embedding(T, D)(torch.arange(T))).tanh()),
        "positions-expanded": lambda: fit((nn.Embedding(T, D)(torch.arange(T).expand(B, T)) + param(D)).tanh()),
        "word2vec": word2vec,
        "factorisation": factorisation,
        "graph-gather": graph_convolution,
        "feature-columns": feature_table,
        "hashed": hashed,
        "quantised": quantised,
        "relative-bias": relative_bias,
    },
)

add("table", None, {"graph-packed": graph_packed})
add("table", None, {"sparse": lambda: read(nn.Embedding(V, D, sparse=True))}, may_refuse=True)
add("table", None, {"bag-sparse": bag("sum", sparse=True)}, may_refuse=True)

add(
    "table",
    None,
    {
        "bag-max-tasks": lambda: nn.EmbeddingBag(V, D, mode="max")(ids()).square().mean(0),
        "bag-frequency": bag("sum", scale_grad_by_freq=True),
    },
)


def turned_column(leaf_turned: bool, out: int, first: bool) -> list[Tensor]:
    """A table of width one: its transpose has the same strides. ``out`` is what the map leads to, 1 or V."""
    w = param(1, V) if leaf_turned else param(V, 1)
    table, row = (w.t(), w) if leaf_turned else (w, w.t())
    rows = F.embedding(ids(B), table)
    x = torch.randn(B, V if out == 1 else 1)
    y = (row @ x.t()).t() if out == 1 and first else (table @ x.t()).t() if first else x @ (table if out == 1 else row)
    return [rows.sin().sum() + y.cos().sum(), y.sin().sum(), rows.square().sum()]


WAYS = {"plain": (False, False), "table": (True, False), "head": (False, True), "both": (True, True)}
for way, (table, head) in WAYS.items():
    add(
        "turned",
        "sample",
        {
            f"{way}": turned(table, head, B, T),
            f"{way}-one-position": turned(table, head, B),
            f"{way}-map-first": turned(table, head, B, T, first=True),
        },
    )
add("turned", "sample", {"oblong": turned_oblong, "oblong-map-first": lambda: turned_oblong(True)})
COLUMNS = {
    f"column-{turned_leaf:d}-{out}-{first:d}": partial(turned_column, turned_leaf, out, first)
    for turned_leaf, out, first in product((False, True), (1, V), (False, True))
}
add("turned", None, COLUMNS)
