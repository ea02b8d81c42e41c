"""Every loss function that torch has, unreduced, each above a small linear net."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add

B, C, T = 5, 4, 3
Maker = Callable[[], Tensor]


def head(*out: int) -> Tensor:
    """A hidden layer and a linear layer; the output is [B, *out]."""
    width = 1
    for n in out:
        width *= n
    return nn.Linear(7, width)(nn.Linear(6, 7)(torch.randn(B, 6)).tanh()).view(B, *out)


def tokens() -> Tensor:
    """[B, T, C] logits."""
    return nn.Linear(7, C)(nn.Linear(6, 7)(torch.randn(B, T, 6)).tanh())


def classes(*shape: int) -> Tensor:
    return torch.randint(0, C, shape or (B,))


def signs(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape or (B,)).mul(2).sub(1).to(torch.get_default_dtype())


def elementwise(loss: Callable[..., Tensor], target: Callable[..., Tensor] = torch.randn) -> Maker:
    """An elementwise loss on [B, C], averaged over classes."""
    return lambda: loss(head(C), target(B, C), reduction="none").mean(1)


def ctc() -> Tensor:
    logits = nn.Linear(7, C)(nn.Linear(6, 7)(torch.randn(B, 8, 6)).tanh()).transpose(0, 1)
    target, lengths = torch.randint(1, C, (B, 3)), torch.tensor([3, 2, 1, 3, 2])
    return F.ctc_loss(logits.log_softmax(2), target, torch.tensor([8, 7, 8, 6, 8]), lengths, reduction="none")


def ctc_of_tensors() -> Tensor:
    """The overload that takes the lengths as tensors, which other devices call."""
    log_p = nn.Linear(7, C)(torch.randn(B, 8, 7)).transpose(0, 1).log_softmax(2)
    lengths = torch.tensor([8, 7, 8, 6, 8]), torch.tensor([3, 2, 1, 3, 2])
    return torch._ctc_loss(log_p, torch.randint(1, C, (B, 3)), *lengths)[0]


def masked_tokens() -> Tensor:
    """Mean over unpadded tokens only."""
    target, mask = classes(B, T), torch.arange(T) < torch.randint(1, T + 1, (B, 1))
    loss = F.cross_entropy(tokens().transpose(1, 2), target, reduction="none")
    return (loss * mask).sum(1) / mask.sum(1)


def ignored_tokens() -> Tensor:
    target = classes(B * T)
    target[::2] = -100
    return F.cross_entropy(tokens().view(-1, C), target, reduction="none", ignore_index=-100).view(B, T).sum(1)


def shifted_tokens() -> Tensor:
    """Next-token loss: logits and targets shifted against each other."""
    logits, target = tokens()[:, :-1].contiguous(), classes(B, T)[:, 1:]
    return F.cross_entropy(logits.view(-1, C), target.reshape(-1), reduction="none").view(B, -1).mean(1)


def focal() -> Tensor:
    ce = F.cross_entropy(head(C), classes(), reduction="none")
    return (1 - torch.exp(-ce)) ** 2 * ce


def dice() -> Tensor:
    p, t = head(6).sigmoid(), torch.randint(0, 2, (B, 6))
    return 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)


def distillation() -> Tensor:
    with torch.no_grad():
        teacher = head(C).softmax(-1)
    return F.kl_div(F.log_softmax(head(C) / 2.0, -1), teacher, reduction="none").sum(-1) * 4.0


def vae() -> Tensor:
    mean, log_var = head(2 * C).chunk(2, 1)
    z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
    recon = F.mse_loss(nn.Linear(C, 6)(z), torch.randn(B, 6), reduction="none").sum(1)
    return recon - 0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1)


def nce() -> Tensor:
    """One positive and sampled negatives per sample, by their own embedding."""
    table = nn.Embedding(9, 4)
    pos, neg = table(torch.randint(0, 9, (B,))), table(torch.randint(0, 9, (B, 3)))
    h = head(4)
    return -F.logsigmoid((h * pos).sum(1)) - F.logsigmoid(-torch.bmm(neg, h.unsqueeze(2)).squeeze(2)).sum(1)


add(
    "loss",
    "sample",
    {
        "mse": elementwise(F.mse_loss),
        "l1": elementwise(F.l1_loss),
        "smooth-l1": elementwise(lambda x, y, reduction: F.smooth_l1_loss(x, y, reduction=reduction, beta=0.7)),
        "huber": elementwise(lambda x, y, reduction: F.huber_loss(x, y, reduction=reduction, delta=0.4)),
        "bce": elementwise(
            lambda x, y, reduction: F.binary_cross_entropy(x.sigmoid(), y, reduction=reduction), torch.rand
        ),
        "bce-logits": elementwise(F.binary_cross_entropy_with_logits, torch.rand),
        "bce-logits-weighted": lambda: F.binary_cross_entropy_with_logits(
            head(C), torch.rand(B, C), weight=torch.rand(B, 1), pos_weight=torch.rand(C), reduction="none"
        ).sum(1),
        "bce-single": lambda: F.binary_cross_entropy_with_logits(head(1).squeeze(1), torch.rand(B), reduction="none"),
        "nll": lambda: F.nll_loss(head(C).log_softmax(1), classes(), reduction="none"),
        "nll-weighted": lambda: F.nll_loss(head(C).log_softmax(1), classes(), weight=torch.rand(C), reduction="none"),
        "nll-pixels": lambda: F.nll_loss(
            head(C, 2, 3).log_softmax(1), classes(B, 2, 3), reduction="none", ignore_index=1
        ).mean((1, 2)),
        "cross-entropy": lambda: F.cross_entropy(head(C), classes(), reduction="none"),
        "cross-entropy-soft": lambda: F.cross_entropy(head(C), torch.rand(B, C).softmax(1), reduction="none"),
        "cross-entropy-smoothed": lambda: F.cross_entropy(head(C), classes(), reduction="none", label_smoothing=0.2),
        "cross-entropy-weighted": lambda: F.cross_entropy(head(C), classes(), weight=torch.rand(C), reduction="none"),
        "cross-entropy-smoothed-weighted": lambda: F.cross_entropy(
            head(C), classes(), weight=torch.rand(C), reduction="none", label_smoothing=0.1
        ),
        "cross-entropy-soft-weighted": lambda: F.cross_entropy(
            head(C, T), torch.rand(B, C, T).softmax(1), weight=torch.rand(C), reduction="none", label_smoothing=0.1
        ).sum(1),
        "cross-entropy-ignored": lambda: F.cross_entropy(
            head(C), torch.tensor([0, -100, 2, 1, -100]), reduction="none"
        ),
        "cross-entropy-channels": lambda: F.cross_entropy(head(C, T), classes(B, T), reduction="none").mean(1),
        "cross-entropy-pixels": lambda: F.cross_entropy(head(C, 2, 2), classes(B, 2, 2), reduction="none").sum((1, 2)),
        "cross-entropy-flattened": lambda: (
            F.cross_entropy(tokens().view(-1, C), classes(B * T), reduction="none").view(B, T).mean(1)
        ),
        "cross-entropy-masked": masked_tokens,
        "cross-entropy-ignored-tokens": ignored_tokens,
        "cross-entropy-shifted": shifted_tokens,
        "kl-div": lambda: F.kl_div(head(C).log_softmax(1), torch.rand(B, C).softmax(1), reduction="none").sum(1),
        "kl-div-log": lambda: F.kl_div(
            head(C).log_softmax(1), torch.rand(B, C).log_softmax(1), reduction="none", log_target=True
        ).sum(1),
        "poisson-nll": elementwise(F.poisson_nll_loss, torch.rand),
        "poisson-nll-full": elementwise(
            lambda x, y, reduction: F.poisson_nll_loss(x.exp(), 3 * y, log_input=False, full=True, reduction=reduction),
            torch.rand,
        ),
        "gaussian-nll": lambda: F.gaussian_nll_loss(
            head(C), torch.randn(B, C), head(C).exp(), full=True, reduction="none"
        ).sum(1),
        "cosine-embedding": lambda: F.cosine_embedding_loss(head(C), head(C), signs(), margin=-0.5, reduction="none"),
        "margin-ranking": lambda: F.margin_ranking_loss(
            head(1).squeeze(1), head(1).squeeze(1), signs(), margin=2.0, reduction="none"
        ),
        "hinge-embedding": lambda: F.hinge_embedding_loss(head(C), signs(B, C), margin=3.0, reduction="none").sum(1),
        "multi-margin": lambda: F.multi_margin_loss(head(C), classes(), reduction="none"),
        "multi-margin-squared": lambda: F.multi_margin_loss(
            head(C), classes(), p=2, margin=1.5, weight=torch.rand(C), reduction="none"
        ),
        "multilabel-margin": lambda: F.multilabel_margin_loss(
            head(C), torch.tensor([[1, 3, -1, 0]] * B), reduction="none"
        ),
        "multilabel-soft-margin": lambda: F.multilabel_soft_margin_loss(
            head(C), torch.randint(0, 2, (B, C)), reduction="none"
        ),
        "soft-margin": lambda: F.soft_margin_loss(head(C), signs(B, C), reduction="none").mean(1),
        "triplet-margin": lambda: F.triplet_margin_loss(head(C), head(C), head(C), margin=3.0, reduction="none"),
        "triplet-distance": lambda: F.triplet_margin_with_distance_loss(
            head(C), head(C), head(C), margin=3.0, swap=True, reduction="none"
        ),
        "ctc": ctc,
        "ctc-tensors": ctc_of_tensors,
        "focal": focal,
        "dice": dice,
        "distillation": distillation,
        "vae": vae,
        "negative-sampling": nce,
        "quantile": lambda: (lambda e: torch.maximum(0.9 * e, -0.1 * e).mean(1))(torch.randn(B, C) - head(C)),
        "weighted-by-sample": lambda: head(C).square().sum(1) * torch.rand(B),
        "gather-log-prob": lambda: -head(C).log_softmax(1).gather(1, classes(B, 1)).squeeze(1),
        "index-log-prob": lambda: -head(C).log_softmax(1)[torch.arange(B), classes()],
        "categorical-log-prob": lambda: -torch.distributions.Categorical(logits=head(C)).log_prob(classes()),
        "normal-log-prob": lambda: (
            -torch.distributions.Normal(head(C), head(C).exp()).log_prob(torch.randn(B, C)).sum(1)
        ),
        "entropy": lambda: torch.distributions.Categorical(logits=head(C)).entropy(),
        "policy-ratio": lambda: (lambda r: torch.min(r, r.clamp(0.8, 1.2)).mul(torch.randn(B)))(
            head(1).squeeze(1).exp()
        ),
        "structured-elementwise": lambda: (head(C) - torch.rand(B, C)).abs().amax(1),
    },
)
