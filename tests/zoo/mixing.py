"""Losses that see more than one sample: wrong in silence wherever a batch axis is assumed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add, fit, param

B, I, H, D = 5, 4, 6, 3


def features(b: int = B, d: int = D) -> Tensor:
    return nn.Linear(H, d)(nn.Linear(I, H)(torch.randn(b, I)).tanh())


def of(f: Callable[[Tensor], Tensor], b: int = B, d: int = D) -> Callable[[], Tensor]:
    return lambda: f(features(b, d))


def info_nce() -> Tensor:
    encoder, x = nn.Sequential(nn.Linear(I, H), nn.Tanh(), nn.Linear(H, D)), torch.randn(B, I)
    a, b = F.normalize(encoder(x), dim=1), F.normalize(encoder(x + 0.1 * torch.randn(B, I)), dim=1)
    return F.cross_entropy(a @ b.t() / 0.2, torch.arange(B), reduction="none")


def two_towers() -> Tensor:
    """Image and text towers with a learned temperature, both directions."""
    a, b, scale = F.normalize(features(), dim=1), F.normalize(features(), dim=1), param()
    logits, target = scale.exp() * a @ b.t(), torch.arange(B)
    return torch.stack([F.cross_entropy(s, target, reduction="none") for s in (logits, logits.t())], 1).mean(1)


def nt_xent() -> Tensor:
    """Both views in one batch, the diagonal masked."""
    z = F.normalize(features(6), dim=1)
    similarity = (z @ z.t() / 0.5).masked_fill(torch.eye(6, dtype=torch.bool), -1e9)
    return F.cross_entropy(similarity, torch.tensor([3, 4, 5, 0, 1, 2]), reduction="none")


def supervised_contrastive(z: Tensor) -> Tensor:
    labels = torch.tensor([0, 1, 0, 1, 0])
    positive = (labels[:, None] == labels).to(z) - torch.eye(B)
    log_prob = F.log_softmax((F.normalize(z, dim=1) @ F.normalize(z, dim=1).t()) - 9.0 * torch.eye(B), 1)
    return -(positive * log_prob).sum(1) / positive.sum(1)


def prototypes() -> Tensor:
    """Few-shot: class means of a support set score the queries."""
    encoder = nn.Linear(I, D)
    support, query = encoder(torch.randn(3, 2, I)).mean(1), encoder(torch.randn(4, I))
    return F.cross_entropy(-torch.cdist(query, support), torch.tensor([0, 2, 1, 1]), reduction="none")


def batch_hard_triplet(z: Tensor) -> Tensor:
    labels, distance = torch.tensor([0, 1, 0, 1, 0]), torch.cdist(z, z) + 0.1
    same = labels[:, None] == labels
    return F.softplus(distance.masked_fill(~same, 0.0).amax(1) - distance.masked_fill(same, 1e9).amin(1))


def barlow(z: Tensor) -> Tensor:
    """One loss per feature pair: the cross-correlation of features over the batch."""
    z = (z - z.mean(0)) / z.std(0)
    return ((z.t() @ z) / B - torch.eye(D)).square()


def whitening(z: Tensor) -> Tensor:
    centred = z - z.mean(0)
    root = torch.linalg.cholesky(centred.t() @ centred + torch.eye(D))
    return fit(torch.linalg.solve_triangular(root, centred.t(), upper=False).t())


def graph_laplacian(z: Tensor) -> Tensor:
    adjacency = torch.rand(B, B)
    return fit((adjacency / adjacency.sum(1, keepdim=True)) @ z)


def list_wise(z: Tensor) -> Tensor:
    """A ranking loss over the whole batch."""
    return -F.log_softmax(z[:, 0], 0)


def pairwise_ranking(z: Tensor) -> Tensor:
    s = z[:, 0]
    return F.softplus(-(s[:, None] - s[None]))[torch.triu_indices(B, B, 1).unbind()]


def mini_batch_discrimination() -> Tensor:
    x, table = features(), param(D, 2, 3)
    m = torch.einsum("bd,dkl->bkl", x, table)
    apart = (m[:, None] - m[None]).abs().sum(-1)
    return fit(torch.cat([x, (-apart).exp().sum(1)], 1))


add(
    "mixing",
    "dense",
    {
        "info-nce": info_nce,
        "two-towers": two_towers,
        "nt-xent": nt_xent,
        "supervised-contrastive": of(supervised_contrastive),
        "pairwise-sums": of(lambda z: (z @ z.t()).square().sum(1)),
        "pairwise-distances": of(lambda z: torch.cdist(z, z.flip(0) + 1).mean(1)),
        "centred": of(lambda z: fit(z - z.mean(0))),
        "centred-keepdim": of(lambda z: fit(z - z.mean(0, keepdim=True))),
        "centred-all": of(lambda z: fit(z - z.mean())),
        "scaled-by-batch": of(lambda z: fit(z / z.norm())),
        "standardised": of(lambda z: fit((z - z.mean(0)) / z.std(0))),
        "softmax-over-batch": of(lambda z: fit(z.softmax(0))),
        "log-softmax-over-batch": of(list_wise),
        "matrix-from-left": of(graph_laplacian),
        "learned-matrix-from-left": of(lambda z: fit(param(4, B) @ z)),
        "whitening": of(whitening),
        "batch-hard-triplet": of(batch_hard_triplet),
        "discrimination": mini_batch_discrimination,
        "all-losses-share": of(lambda z: z.square().sum(1) / z.square().sum(1).sum().detach() + z.square().mean()),
        "normalised-losses": of(lambda z: z.square().sum(1) / z.square().sum()),
        "layer-norm-over-batch": of(lambda z: fit(F.layer_norm(z.t(), [B]), batch_dim=1)),
        "batch-features-swapped": of(lambda z: fit(nn.Linear(B, 4)(z.t()).tanh())),
        "square-swapped": of(lambda z: fit(nn.Linear(4, 4)(z.t()).tanh()), 4, 4),
    },
)

add(
    "mixing",
    None,
    {
        "prototypes": prototypes,
        "pairwise-products": of(lambda z: z @ z.t()),
        "barlow": of(barlow),
        "pairwise-ranking": of(pairwise_ranking),
        "neighbour-differences": of(lambda z: (z[1:] - z[:-1]).square().sum(1)),
        "neighbour-products": of(lambda z: (z[1:] * z[:-1]).sum(1)),
        "pairs-by-step": of(lambda z: (z[::2] - z[1::2]).square().sum(1), 6),
        "pairs-by-view": of(lambda z: z.view(3, 2, D).prod(1).sum(1), 6),
        "pairs-by-chunk": of(lambda z: (z[:3] * z[3:]).sum(1), 6),
        "roll": of(lambda z: fit(z - z.roll(1, 0))),
        "flip": of(lambda z: (z * z.flip(0)).sum(1)),
        "moving-average": of(lambda z: fit(z.unfold(0, 3, 1).mean(2))),
        "cumulated": of(lambda z: fit(z.cumsum(0))),
        "column-sums": of(lambda z: z.square().sum(0)),
        "negatives-by-shift": of(lambda z: torch.stack([(z * z.roll(k, 0)).sum(1) for k in range(3)], 1).logsumexp(1)),
        "first-is-anchor": of(lambda z: (z[1:] - z[:1]).square().sum(1)),
        "anchor-detached": of(lambda z: (z[1:] - z[:1].detach()).square().sum(1)),
        "halves-swapped": of(lambda z: (z * torch.cat([z[3:], z[:3]])).sum(1), 6),
        "diagonal-of-products": of(lambda z: (z @ z.t()).diagonal()),
        "trace-like": of(lambda z: torch.einsum("ij,ij->i", z, z)),
        "detached-centre": of(lambda z: fit(z - z.mean(0).detach())),
        "summed-then-shared": of(lambda z: z[:, 0] * z.sum()),
        "reshaped-crookedly": of(lambda z: fit(z.reshape(3, 6).tanh()), 6),
        "flattened-into-linear": of(lambda z: nn.Linear(B * D, 4)(z.flatten()).square()),
    },
)
