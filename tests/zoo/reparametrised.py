"""Parameters behind a function, and modules that share them."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from tests.zoo.registry import add, fit, param

B, I, H, O = 4, 5, 6, 3


def data(*shape: int) -> Tensor:
    return torch.randn(*(shape or (B, I)))


def wrapped(wrap: Callable[[nn.Module], nn.Module], image: bool = False) -> Callable[[], Tensor]:
    """Two layers, both wrapped."""

    def build() -> Tensor:
        if image:
            layers = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 2)
            return fit(wrap(layers[1])(wrap(layers[0])(torch.randn(B, 3, 6, 5)).tanh()))
        first, second = wrap(nn.Linear(I, H)), wrap(nn.Linear(H, O))
        return fit(second(first(data()).tanh()))

    return build


def legacy_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm.*is deprecated", category=FutureWarning)
        return nn.utils.weight_norm(layer)


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).mT


def parametrized(transform: nn.Module) -> Callable[[], Tensor]:
    def build() -> Tensor:
        first, square = nn.Linear(I, H), nn.Linear(H, H)
        parametrize.register_parametrization(square, "weight", transform)
        return fit(square(first(data()).tanh()))

    return build


def lora(merged: bool, train_base: bool = False) -> Tensor:
    base, a, b = nn.Linear(I, H), param(2, I), param(H, 2)
    base.requires_grad_(train_base)
    x = nn.Linear(I, I)(data()).tanh()
    y = F.linear(x, base.weight + 0.5 * b @ a, base.bias) if merged else base(x) + 0.5 * F.linear(F.linear(x, a), b)
    return fit(nn.Linear(H, O)(y.tanh()))


def dora() -> Tensor:
    """Low-rank update of the direction, a learned magnitude per row."""
    w, a, b, size = data(H, I), param(2, I), param(H, 2), param(H, 1)
    v = w + b @ a
    return fit(F.linear(data(), size * v / v.norm(dim=1, keepdim=True)))


class Parent(nn.Module):
    """Uses its child's weight besides calling the child."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(I, I)

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x).tanh() @ self.child.weight * self.child.bias + x


def nested_sharing() -> Tensor:
    """One layer under several names in nested modules."""
    core = nn.Linear(I, I)
    left, right = nn.Sequential(core, nn.Tanh(), nn.Linear(I, I)), nn.Sequential(nn.Linear(I, I), nn.Tanh(), core)
    return fit(nn.Sequential(left, nn.Tanh(), right, nn.Tanh(), core)(data()))


def shared_bias() -> Tensor:
    first, second = nn.Linear(I, H), nn.Linear(H, H)
    second.bias = first.bias
    return fit(second(first(data()).tanh()))


def transposed_sharing() -> Tensor:
    """A linear layer and a pointwise convolution on the same numbers."""
    w, x = param(4, 3), data(B, 3, 5)
    return fit(F.conv1d(x, w.unsqueeze(-1))) + fit(F.linear(x.mT, w))


def task_dictionary() -> list[Tensor]:
    heads = nn.ParameterDict({name: param(H, O) for name in ("a", "b", "c")})
    hidden = nn.Linear(I, H)(data()).tanh()
    return [fit(hidden @ heads[name]).mean() for name in ("a", "b", "c")]


def task_bias_table() -> list[Tensor]:
    """Task-conditioned: each task reads its row of one table."""
    table, trunk, head = param(3, H), nn.Linear(I, H), nn.Linear(H, O)
    return [fit(head((trunk(data()) + table[k]).tanh())).mean() for k in range(3)]


def cross_stitch() -> list[Tensor]:
    mix, trunks, heads = param(2, 2), [nn.Linear(I, H) for _ in range(2)], [nn.Linear(H, O) for _ in range(2)]
    x = data()
    hidden = torch.stack([trunk(x).tanh() for trunk in trunks])
    hidden = torch.einsum("st,tbh->sbh", mix, hidden)
    return [fit(head(h)).mean() for head, h in zip(heads, hidden, strict=True)]


def task_gates() -> Tensor:
    """Multi-gate mixture of experts, one loss per sample and task."""
    nets, gates = [nn.Linear(I, H) for _ in range(3)], [nn.Linear(I, 3) for _ in range(2)]
    x = data()
    experts = torch.stack([net(x).relu() for net in nets], 1)
    mixed = [torch.einsum("be,beh->bh", gate(x).softmax(1), experts) for gate in gates]
    return torch.stack([fit(nn.Linear(H, 1)(h)) for h in mixed], 1)


def uncertainty_weighting() -> list[Tensor]:
    """Each task loss is scaled by a learned variance of its own."""
    log_var, hidden = param(2), nn.Linear(I, H)(data()).tanh()
    return [fit(nn.Linear(H, O)(hidden)).mean() * (-log_var[k]).exp() + log_var[k] for k in range(2)]


def functional() -> Tensor:
    """A module called with a dictionary of leaves."""
    model = nn.Sequential(nn.Linear(I, H), nn.Tanh(), nn.Linear(H, O))
    leaves = {name: nn.Parameter(p.detach() * 2) for name, p in model.named_parameters()}
    return fit(functional_call(model, leaves, (data(),)))


def inner_step() -> Tensor:
    """One differentiable gradient step before the loss: a meta-learning graph."""
    model = nn.Linear(I, O)
    inner = fit(model(data())).mean()
    grads = torch.autograd.grad(inner, list(model.parameters()), create_graph=True)
    weight, bias = (p - 0.1 * g for p, g in zip(model.parameters(), grads, strict=True))
    return fit(F.linear(data(), weight, bias).tanh())


def fast_weights() -> Tensor:
    """Per-sample adapted weights: vmapped inner gradients."""
    w, x, y = param(O, I), data(B, 3, I), data(B, 3, O)

    def loss(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (x @ weight.mT).tanh().sub(y).square().mean()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(w, x, y)
    return fit(torch.bmm(x, (w - 0.1 * grads).mT))


def ensemble() -> Tensor:
    """Stacked members, vmapped over their parameters."""
    models = [nn.Sequential(nn.Linear(I, H), nn.Tanh(), nn.Linear(H, O)) for _ in range(3)]
    stacked, buffers = torch.func.stack_module_state(models)  # type: ignore[arg-type]
    out = torch.func.vmap(lambda p, b, x: functional_call(models[0], (p, b), x), (0, 0, None))(stacked, buffers, data())
    return fit(out, batch_dim=1)


def vmapped_samples() -> Tensor:
    """The loss written for one sample, vmapped over the batch."""
    model = nn.Sequential(nn.Linear(I, H), nn.Tanh(), nn.Linear(H, O))
    return torch.func.vmap(lambda x, y: (model(x) - y).square().sum())(data(), data(B, O))


def fused_projection(how: str) -> Tensor:
    """Query, key and value from one weight, cut in different ways."""
    w, x = param(3 * H, I), data(B, 3, I)
    if how == "chunk":
        wq, wk, wv = w.chunk(3)
    elif how == "slice":
        wq, wk, wv = w[:H], w[H : 2 * H], w[2 * H :]
    elif how == "view":
        wq, wk, wv = w.view(3, H, I)
    else:
        wq, wk, wv = w.view(H, 3, I).unbind(1)
    return fit((x @ wq.t() @ (x @ wk.t()).mT).softmax(-1) @ (x @ wv.t()))


def flat_vector() -> Tensor:
    """All parameters are views of one leaf."""
    theta = param(I * H + H + H * O)
    w, b, v = theta.split([I * H, H, H * O])
    return fit((data() @ w.view(I, H) + b).tanh() @ v.view(O, H).t())


def hyper_layer() -> Tensor:
    """All weights come from a small code through a generator."""
    code, generator = param(3), nn.Linear(3, O * I)
    return fit(F.linear(data(), generator(code).view(O, I)))


def slimmable() -> Tensor:
    """Nested widths of the same layer."""
    w, v, x = param(H, I), param(O, H), data()
    return sum(fit(F.linear(F.linear(x, w[:k]).tanh(), v[:, :k])) for k in (2, 4, H))  # type: ignore[return-value]


add(
    "reparam",
    None,
    {
        "weight-norm-legacy": wrapped(legacy_weight_norm),
        "weight-norm": wrapped(parametrizations.weight_norm),
        "weight-norm-no-bias": lambda: fit(parametrizations.weight_norm(nn.Linear(I, O, bias=False))(data())),
        "weight-norm-conv": wrapped(legacy_weight_norm, image=True),
        "spectral-norm": wrapped(parametrizations.spectral_norm),
        "spectral-norm-conv": wrapped(parametrizations.spectral_norm, image=True),
        "spectral-norm-legacy": wrapped(nn.utils.spectral_norm),
        "orthogonal": wrapped(parametrizations.orthogonal),
        "symmetric": parametrized(Symmetric()),
        "positive": parametrized(nn.Softplus()),
        "lora": lambda: lora(False),
        "lora-merged": lambda: lora(True),
        "lora-merged-trained-base": lambda: lora(True, True),
        "dora": dora,
        "pruned": lambda: fit(prune.l1_unstructured(nn.Linear(I, O), "weight", 0.4)(data())),
        "task-dictionary": task_dictionary,
        "task-table": task_bias_table,
        "cross-stitch": cross_stitch,
        "task-gates": task_gates,
        "uncertainty-weighting": uncertainty_weighting,
        "inner-step": inner_step,
        "fast-weights": fast_weights,
        "ensemble": ensemble,
        "vmapped-samples": vmapped_samples,
        "fused-chunk": lambda: fused_projection("chunk"),
        "fused-slice": lambda: fused_projection("slice"),
        "fused-view": lambda: fused_projection("view"),
        "fused-interleaved": lambda: fused_projection("unbind"),
        "flat-vector": flat_vector,
        "hyper-layer": hyper_layer,
        "slimmable": slimmable,
    },
)

add(
    "sharing",
    "sample",
    {
        "parent-and-child": lambda: fit(Parent()(data())),
        "parent-and-child-tokens": lambda: fit(Parent()(data(B, 3, I))),
        "nested": nested_sharing,
        "bias": shared_bias,
        "linear-and-conv": transposed_sharing,
        "functional-call": functional,
        "weight-as-view": lambda: fit(F.linear(data(), param(O * I).view(O, I))),
        "weight-as-permuted": lambda: fit(F.linear(data(), param(I, 1, O).permute(2, 0, 1).reshape(O, I))),
        "weight-cloned": lambda: fit(F.linear(data(), param(O, I).clone())),
        "weight-contiguous": lambda: fit(F.linear(data(), param(I, O).t().contiguous())),
    },
)

add(
    "sharing",
    "sample",
    {
        "weight-cast": lambda: fit(F.linear(data().float(), param(O, I).float())),
    },
    tol=1e-6,
)
