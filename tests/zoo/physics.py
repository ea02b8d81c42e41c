"""Graphs that contain derivatives: residuals of differential equations, gradient penalties, Jacobian terms."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.oracle import leaves
from tests.zoo.registry import add, param

N, H = 5, 6


def net(i: int = 1, o: int = 1, activation: type[nn.Module] = nn.Tanh, depth: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(i, H), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(H, H), activation()]
    return nn.Sequential(*layers, nn.Linear(H, o))


def points(n: int = N, d: int = 1) -> Tensor:
    return torch.rand(n, d).requires_grad_()


def gradient(u: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def parameters_only(build: Callable[[], tuple[Tensor | list[Tensor], nn.Module]]) -> Callable[[], tuple]:
    """The points are leaves too, but not trained; a bias that a derivative drops is not reached."""

    def built() -> tuple:
        losses, model = build()
        reached = {id(leaf) for leaf in leaves(losses)}
        return losses, [p for p in model.parameters() if id(p) in reached]

    return built


def everything(build: Callable[[], tuple[Tensor, nn.Module]]) -> Callable[[], tuple]:
    """The points are inputs, too."""

    def built() -> tuple:
        losses, _ = build()
        return losses, leaves(losses)

    return built


def poisson_1d(activation: type[nn.Module] = nn.Tanh, depth: int = 2) -> tuple[Tensor, nn.Module]:
    model, x = net(activation=activation, depth=depth), points()
    second = gradient(gradient(model(x), x), x)
    return (second + torch.sin(x)).squeeze(1).square(), model


def poisson_boundary() -> tuple[Tensor, nn.Module]:
    model, x, ends = net(), points(), torch.tensor([[0.0], [1.0]])
    second = gradient(gradient(model(x), x), x)
    return torch.cat([(second + 1).squeeze(1).square(), model(ends).squeeze(1).square()]), model


def poisson_2d() -> tuple[Tensor, nn.Module]:
    model, x = net(2), points(N, 2)
    first = gradient(model(x), x)
    laplacian = sum(gradient(first[:, k], x)[:, k] for k in range(2))
    return (laplacian - x.prod(1)).square(), model  # type: ignore[operator]


def heat() -> tuple[Tensor, nn.Module]:
    model, x, t = net(2), points(), points()
    u = model(torch.cat([x, t], 1))
    return (gradient(u, t) - 0.3 * gradient(gradient(u, x), x)).squeeze(1), model


def burgers_sequence() -> tuple[list[Tensor], nn.Module]:
    """Residuals, initial values and boundary values as a sequence of vectors."""
    model, x, t = net(2), points(4), points(4)
    u = model(torch.cat([x, t], 1))
    residual = gradient(u, t) + u * gradient(u, x) - 0.1 * gradient(gradient(u, x), x)
    initial = model(torch.cat([x, torch.zeros_like(t)], 1)) + torch.sin(x)
    return [residual.squeeze(1).square(), initial.squeeze(1).square()], model


def wave_with_source() -> tuple[Tensor, nn.Module]:
    """An unknown coefficient is trained with the net (an inverse problem)."""
    model, speed, xt = net(2), param(), points(N, 2)
    model.register_parameter("speed", speed)
    du = gradient(model(xt), xt)
    return (gradient(du[:, 1], xt)[:, 1] - speed.exp() * gradient(du[:, 0], xt)[:, 0]).square(), model


def biharmonic() -> tuple[Tensor, nn.Module]:
    """Four derivatives deep."""
    model, x = net(depth=1), points(4)
    u = model(x)
    for _ in range(4):
        u = gradient(u, x)
    return (u - 1).squeeze(1).square(), model


def per_point_forward_mode() -> tuple[Tensor, nn.Module]:
    """The same residual through nested transforms and vmap."""
    model, x = net(), torch.rand(N)

    def u(point: Tensor) -> Tensor:
        return model(point.view(1)).squeeze()

    second = torch.func.vmap(torch.func.grad(torch.func.grad(u)))(x)
    return (second + x).square(), model


def hessian_by_vmap() -> tuple[Tensor, nn.Module]:
    model, x = net(2), torch.rand(4, 2)
    hessians = torch.func.vmap(torch.func.jacrev(torch.func.grad(lambda p: model(p).squeeze())))(x)
    return (hessians.diagonal(dim1=1, dim2=2).sum(1) - 1).square(), model


def gradient_penalty() -> tuple[Tensor, nn.Module]:
    """A critic's gradient norm per sample."""
    model, x = net(4, activation=nn.Softplus), points(N, 4)
    return (gradient(model(x), x).norm(dim=1) - 1).square() + model(x).squeeze(1), model


def gradient_penalty_images() -> tuple[Tensor, nn.Module]:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(12, 1))
    x = torch.randn(4, 2, 4, 4).requires_grad_()
    return gradient(model(x), x).flatten(1).square().sum(1), model


def energy_force() -> tuple[Tensor, nn.Module]:
    """A force field: energies of small clusters and their negative gradients."""
    model, place = net(3), torch.randn(4, 3, 2).requires_grad_()
    apart = (place[:, [0, 0, 1]] - place[:, [1, 2, 2]]).square().sum(-1)
    energy = model((-apart).exp()).squeeze(1)
    force = -gradient(energy, place)
    return energy.square() + (force - torch.randn_like(force)).square().sum((1, 2)), model


def contractive() -> tuple[Tensor, nn.Module]:
    """Squared Jacobian of the hidden layer, one output at a time."""
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid()), points(4, 3)
    hidden = model(x)
    return sum(gradient(hidden[:, k], x).square().sum(1) for k in range(4)), model  # type: ignore[return-value]


def score_matching() -> tuple[Tensor, nn.Module]:
    """Sliced: a directional second derivative per sample."""
    model, x, v = net(2, 2), points(4, 2), torch.randn(4, 2)
    score = model(x)
    return (gradient((score * v).sum(1), x) * v).sum(1) + 0.5 * (score * v).sum(1).square(), model


def sobolev() -> tuple[Tensor, nn.Module]:
    """Value and slope of each sample as two losses."""
    model, x = net(), points()
    u = model(x)
    return torch.stack([u.squeeze(1).square(), (gradient(u, x) - 1).squeeze(1).square()], 1), model


def layer_norm_twice() -> tuple[Tensor, nn.Module]:
    model = nn.Sequential(nn.Linear(3, H), nn.LayerNorm(H), nn.GELU(), nn.Linear(H, 1))
    x = points(4, 3)
    return gradient(model(x), x).square().sum(1), model


def attention_twice() -> tuple[Tensor, nn.Module]:
    model, x = nn.Linear(4, 12), torch.randn(3, 3, 4).requires_grad_()
    q, k, v = model(x).chunk(3, -1)
    y = (q @ k.mT).softmax(-1) @ v
    return gradient(y.square().sum((1, 2)), x).square().sum((1, 2)), model


def total_gradient_norm() -> tuple[Tensor, nn.Module]:
    """The norm of the whole batch's parameter gradient is added to each loss: dense by nature."""
    model, x = net(2), torch.randn(4, 2)
    losses = model(x).squeeze(1).square()
    grads = torch.autograd.grad(losses.mean(), list(model.parameters()), create_graph=True)
    return losses + 0.1 * sum(g.square().sum() for g in grads), model


def cross_sample_gradient() -> tuple[Tensor, nn.Module]:
    """Differentiates a loss that already mixes the samples."""
    model, x = net(2), points(4, 2)
    u = model(x)
    return gradient((u - u.mean()).square().sum(), x).square().sum(1), model


def differentiated(f: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """The slope of ``f`` is part of the graph, and its backward node with it."""

    def build() -> Tensor:
        z = nn.Linear(4, H)(torch.randn(N, 4))
        return (gradient(f(z).square().sum(1), z) + z).square().sum(1)

    return build


SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "gelu": F.gelu,
    "hardshrink": F.hardshrink,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "leaky-relu": F.leaky_relu,
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softshrink": F.softshrink,
    "tanh": torch.tanh,
    "threshold": lambda z: F.threshold(z, 0.1, 0.2),
}
SLOPES_ALONG: dict[str, Callable[[Tensor], Tensor]] = {
    "glu": lambda z: F.glu(z, 1),
    "log-softmax": lambda z: z.log_softmax(1),
    "softmax": lambda z: z.softmax(1),
}

SAMPLE = {
    "poisson-1d": poisson_1d,
    "poisson-1d-sine": lambda: poisson_1d(nn.SiLU),
    "poisson-1d-deep": lambda: poisson_1d(depth=4),
    "poisson-boundary": poisson_boundary,
    "poisson-2d": poisson_2d,
    "heat": heat,
    "burgers-sequence": burgers_sequence,
    "wave-inverse": wave_with_source,
    "biharmonic": biharmonic,
    "vmapped-derivatives": per_point_forward_mode,
    "hessian": hessian_by_vmap,
    "gradient-penalty": gradient_penalty,
    "energy-force": energy_force,
    "contractive": contractive,
    "score-matching": score_matching,
    "sobolev": sobolev,
}
ANY = {
    "gradient-penalty-images": gradient_penalty_images,
    "layer-norm": layer_norm_twice,
    "attention": attention_twice,
}
DENSE = {
    "parameter-gradient-norm": total_gradient_norm,
    "cross-sample": cross_sample_gradient,
}
for layout, table in (("sample", SAMPLE), (None, ANY), ("dense", DENSE)):
    add("pde", layout, {name: parameters_only(build) for name, build in table.items()})
add("pde", "sample", {"points-too": everything(poisson_1d)})
for layout, slopes in (("sample", SLOPES), (None, SLOPES_ALONG)):
    add("slope", layout, {name: differentiated(f) for name, f in slopes.items()})
