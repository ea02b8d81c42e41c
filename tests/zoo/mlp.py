"""Linear algebra on vectors: stacks of linear layers, reuse, freezing, and odd ways to multiply by a matrix."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from tests.zoo.registry import Built, add, fit, net, param

B, I, H, O = 5, 6, 7, 3


def data(*shape: int) -> Tensor:
    return torch.randn(*(shape or (B, I)))


def mlp(*widths: int, bias: bool = True) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o, bias=bias), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def layer_reuse() -> Tensor:
    first, middle, last = nn.Linear(I, H), nn.Linear(H, H), nn.Linear(H, O)
    hidden = first(data())
    for _ in range(3):
        hidden = middle(hidden).tanh()
    return fit(last(hidden))


def siamese() -> Tensor:
    tower = mlp(I, H, O)
    return (tower(data()) - tower(data())).square().sum(1)


def siamese_stacked() -> Tensor:
    """Both branches in one call: the tower's batch axis is twice the loss axis."""
    tower = mlp(I, H, O)
    left, right = tower(torch.cat([data(), data()])).chunk(2)
    return (left * right).sum(1)


def tied_autoencoder() -> Tensor:
    w, b, c = param(H, I, scale=0.4), param(H), param(I)
    x = data()
    return fit(((x @ w.t() + b).tanh()) @ w + c)


def both_orientations_linear() -> Tensor:
    layer = nn.Linear(I, I)
    return fit(nn.functional.linear(layer(data()).tanh(), layer.weight.t()))


def frozen_middle() -> Tensor:
    net_ = mlp(I, H, H, O)
    net_[2].requires_grad_(False)
    return fit(net_(data()))


def frozen_first() -> Tensor:
    net_ = mlp(I, H, O)
    net_[0].requires_grad_(False)
    return fit(net_(data()))


def frozen_weight_only() -> Tensor:
    net_ = mlp(I, H, O)
    net_[0].weight.requires_grad_(False)
    net_[2].weight.requires_grad_(False)
    return fit(net_(data()))


def frozen_bias_only() -> Tensor:
    net_ = mlp(I, H, O)
    net_[0].bias.requires_grad_(False)
    return fit(net_(data()))


def unused_parameters() -> Built:
    used, unused = mlp(I, H, O), nn.Linear(3, 2)
    return fit(used(data())), [*unused.parameters(), *used.parameters()]


def inputs_subset() -> Built:
    net_ = mlp(I, H, H, O)
    return fit(net_(data())), [net_[2].weight, net_[0].bias]


def last_layer_only() -> Built:
    net_ = mlp(I, H, H, O)
    return fit(net_(data())), list(net_[4].parameters())


def unfrozen_later() -> Tensor:
    net_ = mlp(I, H, O)
    net_[0].requires_grad_(False)
    fit(net_(data())).sum().backward()
    net_.zero_grad()
    net_[0].requires_grad_(True)
    return fit(net_(data()))


def residual() -> Tensor:
    inp, blocks, out = nn.Linear(I, H), [mlp(H, 4, H) for _ in range(3)], nn.Linear(H, O)
    hidden = inp(data())
    for block in blocks:
        hidden = hidden + block(hidden)
    return fit(out(hidden))


def dense_skips() -> Tensor:
    x = data()
    for width in (6, 10, 14):
        x = torch.cat([x, nn.Linear(width, 4)(x).tanh()], 1)
    return fit(x)


def highway() -> Tensor:
    inp, gate, carry = nn.Linear(I, H), nn.Linear(H, H), nn.Linear(H, H)
    h = inp(data())
    t = gate(h).sigmoid()
    return fit(t * carry(h).tanh() + (1 - t) * h)


def hypernetwork() -> Tensor:
    """Per-sample weights made by another network: a batched product of two activations."""
    hyper, x = nn.Linear(4, I * O), data()
    weights = hyper(data(B, 4)).view(B, O, I)
    return fit(torch.bmm(weights, x.unsqueeze(2)).squeeze(2))


def sample_inputs() -> Built:
    """Per-sample learnable inputs (adversarial examples, latent codes)."""
    net_, latent = mlp(I, H, O), param(B, I)
    return fit(net_(latent)), [latent, *net_.parameters()]


def only_sample_inputs() -> Built:
    net_, latent = mlp(I, H, O), param(B, I)
    return fit(net_(latent)), [latent]


def film() -> Tensor:
    """Feature-wise modulation by parameters and by a second input."""
    inp, mod, out, scale = nn.Linear(I, H), nn.Linear(2, 2 * H), nn.Linear(H, O), param(H)
    gamma, beta = mod(data(B, 2)).split(H, dim=1)
    return fit(out((inp(data()) * gamma + beta).relu() * scale))


def batch_equals_all(n: int = 4) -> Tensor:
    """Every size is the same: shapes alone must not decide which axis is the batch."""
    a, b, w = nn.Linear(n, n), nn.Linear(n, n), param(n, n)
    x = a(torch.randn(n, n, n)).tanh()
    return fit(b(x.transpose(1, 2) @ w).tanh() @ x)


add(
    "mlp",
    "sample",
    {
        "linear": lambda: net(nn.Linear(6, 3)),
        "linear-no-bias": lambda: net(nn.Linear(6, 3, bias=False)),
        "linear-to-one": lambda: nn.Linear(I, 1)(data()).squeeze(1).square(),
        "linear-from-one": lambda: net(nn.Linear(1, 4), torch.tanh, nn.Linear(4, 1), shape=(5, 1)),
        "two-layers": lambda: fit(mlp(I, H, O)(data())),
        "five-layers": lambda: fit(mlp(I, H, 4, 9, 5, O)(data())),
        "no-bias": lambda: fit(mlp(I, H, H, O, bias=False)(data())),
        "batch-one": lambda: fit(mlp(I, H, O)(data(1, I))),
        "three-axes": lambda: fit(mlp(I, H, O)(data(3, 4, I))),
        "four-axes": lambda: fit(mlp(I, H, O)(data(3, 2, 4, I))),
        "positions-one": lambda: fit(mlp(I, H, O)(data(3, 1, I))),
        "batch-second": lambda: fit(mlp(I, H, O)(data(4, 3, I)), batch_dim=1),
        "batch-third": lambda: fit(mlp(I, H, O)(data(2, 4, 3, I)), batch_dim=2),
        "all-sizes-equal": batch_equals_all,
        "all-sizes-one": lambda: batch_equals_all(1),
        "layer-reuse": layer_reuse,
        "siamese": siamese,
        "siamese-stacked": siamese_stacked,
        "tied-autoencoder": tied_autoencoder,
        "both-orientations": both_orientations_linear,
        "frozen-middle": frozen_middle,
        "frozen-first": frozen_first,
        "frozen-weights": frozen_weight_only,
        "frozen-bias": frozen_bias_only,
        "inputs-subset": inputs_subset,
        "last-layer-only": last_layer_only,
        "unfrozen-later": unfrozen_later,
        "residual": residual,
        "dense-skips": dense_skips,
        "highway": highway,
        "hypernetwork": hypernetwork,
        "sample-inputs": sample_inputs,
        "only-sample-inputs": only_sample_inputs,
        "film": film,
        "bias-only": lambda: fit(data() + param(I)),
        "scale-only": lambda: fit(data() * param(I)),
        "scalar-parameter": lambda: fit(data() * param() + param(1)),
        "temperature": lambda: fit(mlp(I, H, O)(data()) / param().exp()),
        "table-by-position": lambda: fit((data(B, 4, I) + param(4, I)).tanh() * param(1, 4, 1)),
        "bilinear": lambda: fit(nn.Bilinear(I, 4, O)(data(), data(B, 4))),
        "bilinear-positions": lambda: fit(nn.Bilinear(I, 4, O, bias=False)(data(3, 2, I), data(3, 2, 4))),
        "bilinear-both": lambda: fit(nn.Bilinear(H, H, O)(nn.Linear(I, H)(data()), nn.Linear(4, H)(data(B, 4)))),
        "inner-product": lambda: (nn.Linear(I, O)(data()) * nn.Linear(I, O)(data())).sum(1),
        "expanded-input": lambda: fit(mlp(I, H, O)(data(1, I).expand(B, I))),
        "transposed-input": lambda: fit(mlp(I, H, O)(data(I, B).t())),
        "strided-input": lambda: fit(mlp(I, H, O)(data(B, 2 * I)[:, ::2])),
        "bagged-members": lambda: fit(torch.stack([mlp(I, 3, O)(x) for x in [data()] * 3]).mean(0)),
        "linear-1d-out": lambda: fit(nn.functional.linear(data(), param(I)).unsqueeze(1)),
    },
)

add("mlp", None, {"unused-parameters": unused_parameters}, may_refuse=True)
