"""The batch on an axis where the operation does not expect it: same shapes, other rows."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add, fit, param

B = 4


def hidden(*shape: int) -> Tensor:
    *lead, last = shape
    return nn.Linear(3, last)(torch.randn(*lead, 3))


def at(f: Callable[[Tensor], Tensor], *shape: int, batch_dim: int = 0) -> Callable[[], Tensor]:
    """``f`` of a hidden activation; losses along ``batch_dim`` of the result."""

    def build() -> Tensor:
        y = f(hidden(*shape))
        return fit(y if y.dim() > 1 else y.unsqueeze(1), batch_dim)

    return build


def neighbours(k: int = B) -> Tensor:
    """A sparse graph's normalised adjacency."""
    dense = torch.eye(k) + torch.eye(k).roll(1, 0)
    return (dense / 2).to_sparse()


def node_losses() -> Tensor:
    """Graph convolution with one loss per node."""
    x = torch.sparse.mm(neighbours(), hidden(B, 5)).relu()
    return fit(torch.sparse.mm(neighbours(), nn.Linear(5, 2)(x)))


def classes_are_samples() -> Tensor:
    """Cross entropy of the transposed logits: each loss sees all samples."""
    return F.cross_entropy(hidden(B, 5).t(), torch.tensor([0, 3, 1, 1, 2]), reduction="none")


def pixels_are_samples() -> Tensor:
    """Cross entropy with the samples as pixels of one image."""
    logits = hidden(B, 5).t().unsqueeze(0)
    return F.cross_entropy(logits, torch.tensor([[0, 4, 1, 2]]), reduction="none").squeeze(0)


def heads_are_samples() -> Tensor:
    q, k, v = (hidden(B, 3, 2) for _ in range(3))
    return fit(F.scaled_dot_product_attention(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)).squeeze(0))


def queries_are_samples() -> Tensor:
    """Samples query learned keys: they do not see each other."""
    q, k, v = hidden(B, 4), param(3, 4), param(3, 2)
    return fit(F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0])


def keys_are_samples() -> Tensor:
    q, k, v = param(3, 4), hidden(B, 4), hidden(B, 2)
    return fit(F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0])


def memory_is_one_sample() -> Tensor:
    """All samples attend to the first one."""
    x = hidden(B, 3, 4)
    return fit(F.scaled_dot_product_attention(x, x[:1].expand(B, 3, 4), x[:1].expand(B, 3, 4)))


def time_is_samples() -> Tensor:
    out, _ = nn.GRU(5, 3)(hidden(B, 2, 5))
    return fit(out)


def table_of_samples() -> Tensor:
    """The hidden activations are the table of an embedding."""
    return fit(F.embedding(torch.tensor([[0, 1], [2, 2], [3, 0]]), hidden(B, 5)))


def own_row_of_table() -> Tensor:
    """The same, each sample reading its own row."""
    return fit(F.embedding(torch.arange(B).unsqueeze(1), hidden(B, 5)))


def batch_of_grids() -> Tensor:
    """One image sampled by every sample's grid."""
    image, grid = param(1, 2, 4, 4), hidden(B, 3, 2, 2).tanh()
    return fit(F.grid_sample(image.expand(B, 2, 4, 4), grid, align_corners=False))


def weight_of_samples() -> Tensor:
    """The hidden activations are the weight of a linear layer; losses per output, that is, per sample."""
    return fit(F.linear(torch.randn(6, 5), hidden(B, 5), torch.randn(B)), batch_dim=1)


def weight_of_samples_mixed() -> Tensor:
    return fit(F.linear(torch.randn(6, 5), hidden(B, 5)))


def filters_are_samples() -> Tensor:
    """Each sample is one filter."""
    return fit(F.conv2d(torch.randn(2, 3, 5, 5), hidden(B, 3, 2, 2)), batch_dim=1)


def filter_inputs_are_samples() -> Tensor:
    return fit(F.conv1d(torch.randn(2, B, 6), hidden(B, 5, 2).transpose(0, 1)))


def scale_of_norm_is_samples() -> Tensor:
    return fit(F.layer_norm(torch.randn(5, B), [B], hidden(B, 1).squeeze(1)), batch_dim=1)


def position_scatter() -> Tensor:
    """Rows written into a buffer at other rows' places."""
    return fit(torch.zeros(B, 5).index_put((torch.tensor([2, 0, 3, 1]),), hidden(B, 5)))


def row_accumulate() -> Tensor:
    index = (torch.tensor([2, 0, 2, 1]),)
    return fit(torch.ones(B, 5).index_put(index, hidden(B, 5), accumulate=True))


X = (B, 5)
S = (B, B)
add(
    "axis",
    None,
    {
        "softmax": at(lambda x: x.softmax(0), *S),
        "normalize": at(lambda x: F.normalize(x, dim=0), *S),
        "cosine": at(lambda x: F.cosine_similarity(x, x.flip(1), dim=0), *X),
        "glu": at(lambda x: F.glu(x, 0), *X),
        "prod": at(lambda x: x.prod(0), *S),
        "var": at(lambda x: x.var(0), *S),
        "norm": at(lambda x: x.norm(dim=0), *S),
        "logsumexp": at(lambda x: x.logsumexp(0), *S),
        "amax": at(lambda x: x.amax(0), *S),
        "median": at(lambda x: x.median(0).values, *S),
        "std-mean": at(lambda x: torch.cat(torch.std_mean(x, 0)).unsqueeze(1), *S),
        "sort": at(lambda x: x.sort(0).values, *S),
        "argsorted": at(lambda x: x[x.argsort(0)[:, 0]], *X),
        "cumsum": at(lambda x: x.cumsum(0), *S),
        "cumprod": at(lambda x: x.cumprod(0), *S),
        "cummax": at(lambda x: x.cummax(0).values, *S),
        "logcumsumexp": at(lambda x: x.logcumsumexp(0), *S),
        "flip": at(lambda x: x.flip(0) * x, *S),
        "rot90": at(lambda x: x.rot90() * x, *S),
        "transpose": at(lambda x: x.t() * x, *S),
        "transpose-cube": at(lambda x: x.transpose(0, 1) + x.transpose(0, 2), B, B, B),
        "matmul-self": at(lambda x: x @ x, *S),
        "matmul-cube": at(lambda x: x @ x.transpose(0, 1), B, B, B),
        "tril": at(torch.tril, *S),
        "triu-cube": at(lambda x: x.transpose(0, 1).triu(), B, B, B, batch_dim=1),
        "diagonal": at(torch.diagonal, *S),
        "diagonal-cube": at(lambda x: x.diagonal(dim1=0, dim2=1), B, B, B),
        "diag-embed": at(lambda x: x.diag_embed(), *X),
        "diag-of-vector": at(lambda x: torch.diag(x[:, 0]), *X),
        "trace": at(lambda x: x.trace().expand(3) * torch.rand(3), *S),
        "determinant": at(lambda x: torch.linalg.det(x + 3 * torch.eye(B)).expand(2) * torch.rand(2), *S),
        "inverse": at(lambda x: torch.linalg.inv(x + 4 * torch.eye(B)), *S),
        "solve": at(lambda x: torch.linalg.solve(torch.eye(B) + 0.1 * torch.rand(B, B), x), *X),
        "cross": at(lambda x: torch.linalg.cross(x, x.flip(1), dim=0), 3, 5),
        "covariance": at(lambda x: x.cov(), *X),
        "correlation": at(lambda x: x.t().corrcoef(), *X),
        "renorm": at(lambda x: x.renorm(2, 0, 0.5), *X),
        "renorm-columns": at(lambda x: x.renorm(2, 1, 0.5), *X),
        "pad": at(lambda x: F.pad(x, (0, 0, 1, 1))[1:-1], *X),
        "pad-circular": at(lambda x: F.pad(x.t()[None], (1, 1), mode="circular")[0].t(), *X),
        "max-pool": at(lambda x: F.max_pool1d(x.t(), 2, 1).t(), *X),
        "max-pool-as-channel": at(lambda x: F.max_pool2d(x[None], 2)[0], B, 4, 4),
        "avg-pool": at(lambda x: F.avg_pool1d(x.t(), 3, 1, 1).t(), *X),
        "avg-pool-plane": at(lambda x: F.avg_pool2d(x[None, None], (1, 2))[0, 0], B, 4),
        "interpolate": at(lambda x: F.interpolate(x.t()[None], scale_factor=2, mode="linear")[0].t(), *X),
        "interpolate-as-channel": at(lambda x: F.interpolate(x[None], scale_factor=2, mode="bilinear")[0], B, 3, 3),
        "unfold": at(lambda x: x.unfold(0, 2, 1), *X),
        "image-unfold": at(lambda x: F.unfold(x.view(1, 1, B, 5), 2)[0].t(), *X),
        "pixel-shuffle": at(lambda x: F.pixel_shuffle(x[None], 2)[0], B, 3, 3),
        "group-norm-one": at(lambda x: F.group_norm(x[None], 1)[0], B, 3),
        "group-norm-each": at(lambda x: F.group_norm(x[None], B)[0], B, 3),
        "group-norm-pairs": at(lambda x: F.group_norm(x[None], 2)[0], B, 3),
        "instance-norm": at(lambda x: F.instance_norm(x[None])[0], B, 6),
        "instance-norm-across": at(lambda x: F.instance_norm(x.t()[None])[0].t(), B, 6),
        "layer-norm-both": at(lambda x: F.layer_norm(x, [B, 5]), *X),
        "batch-norm-of-features": at(lambda x: F.batch_norm(x.t(), None, None, training=True).t(), *X),
        "batch-norm-of-spots": at(
            lambda x: F.batch_norm(x.transpose(0, 1), None, None, training=True), 2, B, 3, batch_dim=1
        ),
        "dropout": at(lambda x: F.dropout1d(x[None], 0.5)[0] + x, B, 6),
        "classes": classes_are_samples,
        "pixels": pixels_are_samples,
        "heads": heads_are_samples,
        "queries": queries_are_samples,
        "keys": keys_are_samples,
        "memory": memory_is_one_sample,
        "time": time_is_samples,
        "table": table_of_samples,
        "own-row-of-table": own_row_of_table,
        "grids": batch_of_grids,
        "weight": weight_of_samples,
        "weight-mixed": weight_of_samples_mixed,
        "filters": filters_are_samples,
        "filter-inputs": filter_inputs_are_samples,
        "scale-of-norm": scale_of_norm_is_samples,
        "index-put": position_scatter,
        "index-put-accumulate": row_accumulate,
        "scatter": at(lambda x: torch.zeros(B, 5).scatter(0, torch.tensor([[2], [0], [3], [1]]).expand(B, 5), x), *X),
        "scatter-mixed": at(lambda x: torch.zeros(B, 5).scatter_add(0, torch.randint(0, B, (B, 5)), x), *X),
        "scatter-reduce": at(lambda x: x.scatter_reduce(0, torch.randint(0, B, (B, 5)), x.flip(0), "prod"), *X),
        "select-scatter": at(lambda x: x.select_scatter(x[0] * 2, 0, 2), *X),
        "slice-scatter": at(lambda x: x.slice_scatter(x[1:3].sin(), 0, 2, 4), *X),
        "masked-write": at(lambda x: x.masked_scatter(torch.eye(B, 5).bool(), x[:, 0]), *X),
        "as-strided-scatter": at(lambda x: x.as_strided_scatter(x[:, :2] * 2, (B, 2), (5, 1), 1), *X),
        "as-strided-scatter-column": at(lambda x: torch.as_strided_scatter(x, param(B), (B,), (6,)), *X),
        "diagonal-scatter": at(lambda x: torch.diagonal_scatter(x, param(B) * 2), *X),
        "scatter-reduce-amax": at(lambda x: x.scatter_reduce(1, torch.tensor([[0, 1, 1]] * B), x[:, 2:], "amax"), *X),
        "addr": at(lambda x: torch.addr(x, x[:, 0], param(5)), *X),
        "unsafe-split": at(lambda x: torch.unsafe_split_with_sizes(x, [1, 3])[1], *X),
        "take": at(lambda x: x.take(torch.tensor([[0, 6], [7, 11], [19, 3]])), *X),
        "put": at(lambda x: x.put(torch.tensor([3, 12]), x[2, :2]), *X),
        "bucket-means": at(lambda x: torch.stack([x[[0, 2]].mean(0), x[[1, 3]].mean(0)]), *X),
        "einsum-trace": at(lambda x: torch.einsum("iij->ij", x), B, B, 3),
        "einsum-crossed": at(lambda x: torch.einsum("ij,kj->ik", x, x), *X),
        "einsum-swapped": at(lambda x: torch.einsum("ijk,jik->ij", x, x), B, B, 3),
        "kron": at(lambda x: torch.kron(x, torch.rand(2, 1)), *X),
        "kron-front": at(lambda x: torch.kron(torch.rand(2, 1), x), *X),
        "kron-self": at(lambda x: torch.kron(x, x)[::5], *X),
        "view-shift": at(lambda x: x.view(-1)[2:-3].view(3, 5), *X),
        "as-strided-overlap": at(lambda x: x.as_strided((3, 6), (5, 1)), *X),
        "diff": at(lambda x: x.diff(dim=0), *X),
        "gradient": at(lambda x: torch.gradient(x, dim=0)[0], *X),
        "trapezoid": at(lambda x: torch.trapezoid(x, dim=0), *S),
        "histogram-soft": at(lambda x: (-(x.view(-1, 1) - torch.linspace(-1, 1, 4)).square()).exp().sum(0), *X),
        "cartesian": at(lambda x: torch.cartesian_prod(x[:, 0], x[:2, 1]), *X),
        "combinations": at(lambda x: torch.combinations(x[:, 0]), *X),
        "block-diag": at(lambda x: torch.block_diag(x[:2], x[2:]), *X),
        "pdist": at(lambda x: F.pdist(x).view(-1, 1), *X),
        "complex-product": at(lambda x: torch.view_as_real(torch.view_as_complex(x.view(2, 5, 2)) ** 2), *X),
    },
)
add("axis", None, {"sparse-adjacency": node_losses}, may_refuse=True)
