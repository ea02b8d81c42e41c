"""Things done to the graph, not to the numbers: checkpoints, hooks, autocast, in-place edits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.zoo.registry import Built, add, fit

B, I, H, O = 4, 5, 6, 3


def data(*shape: int) -> Tensor:
    return torch.randn(*(shape or (B, I)))


def mlp(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(I, H), nn.Tanh(), *middle, nn.Linear(H, O))


def checkpointed(*middle: nn.Module, **options: Any) -> Tensor:
    return fit(checkpoint(mlp(*middle), data(), use_reentrant=False, **options))


def checkpointed_blocks() -> Tensor:
    blocks, x = [nn.Sequential(nn.Linear(I, I), nn.Dropout(0.2), nn.Tanh()) for _ in range(3)], data()
    for block in blocks:
        x = x + checkpoint(block, x, use_reentrant=False)
    return fit(x)


def checkpointed_images() -> Tensor:
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 2))
    return fit(nn.Conv2d(2, 2, 1)(checkpoint(block, data(B, 3, 6, 6), use_reentrant=False)))


def checkpointed_sequential() -> Tensor:
    model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(I, I), nn.Tanh())])
    return fit(checkpoint_sequential(model, 2, data(), use_reentrant=False))


def checkpointed_shared() -> Tensor:
    """The same block in and out of the checkpoint."""
    block = nn.Sequential(nn.Linear(I, I), nn.Tanh())
    return fit(block(checkpoint(block, block(data()), use_reentrant=False)))


def checkpointed_nested() -> Tensor:
    inner, outer = nn.Sequential(nn.Linear(H, H), nn.Tanh()), nn.Linear(I, H)

    def run(x: Tensor) -> Tensor:
        return checkpoint(inner, outer(x).tanh(), use_reentrant=False)

    return fit(checkpoint(run, data(), use_reentrant=False))


def checkpointed_encoder() -> Tensor:
    block = nn.TransformerEncoderLayer(8, 2, 10, 0.1, batch_first=True)
    return fit(checkpoint(block, nn.Linear(I, 8)(data(3, 4, I)), use_reentrant=False))


def tensor_hook(hook: Callable[[Tensor], Tensor], on: str = "hidden") -> Callable[[], Tensor]:
    """A hook that changes a gradient on its way."""

    def build() -> Tensor:
        first, last = nn.Linear(I, H), nn.Linear(H, O)
        hidden = first(data()).tanh()
        (first.weight if on == "leaf" else hidden).register_hook(hook)
        return fit(last(hidden))

    return build


def observed() -> Tensor:
    """A hook that only looks, and a retained gradient."""
    first, last = nn.Linear(I, H), nn.Linear(H, O)
    hidden = first(data()).tanh()
    hidden.register_hook(lambda grad: None)
    hidden.retain_grad()
    return fit(last(hidden))


def module_hook() -> Tensor:
    """A full backward hook on a module that scales what flows to its input."""
    first, last = nn.Linear(I, H), nn.Linear(H, O)
    last.register_full_backward_hook(lambda module, grads, _: tuple(0.5 * g for g in grads))
    return fit(last(first(data()).tanh()))


def node_hook() -> Tensor:
    first, last = nn.Linear(I, H), nn.Linear(H, O)
    hidden = first(data()).tanh()
    hidden.grad_fn.register_hook(lambda inputs, outputs: tuple(2 * g for g in inputs))  # type: ignore[union-attr]
    return fit(last(hidden))


def autocast(model: Callable[[], nn.Module], *shape: int, enabled_losses: bool = False) -> Callable[[], Tensor]:
    def build() -> Tensor:
        net = model()
        with torch.autocast("cpu", torch.bfloat16):
            out = net(data(*shape))
            return fit(out).float() if enabled_losses else fit(out.float())

    return build


def written(edit: Callable[[Tensor, Tensor], None]) -> Callable[[], Tensor]:
    """Edit a [B, 3, H] activation in place, given another activation [B, H]."""

    def build() -> Tensor:
        x, y = nn.Linear(I, H)(data(B, 3, I)).clone(), nn.Linear(I, H)(data())
        edit(x, y)
        return fit(nn.Linear(H, O)(x))

    return build


def set_first(x: Tensor, y: Tensor) -> None:
    x[:, 0] = y


def set_feature(x: Tensor, y: Tensor) -> None:
    x[..., 1] = y[:, :3]


def set_strided(x: Tensor, y: Tensor) -> None:
    x[:, ::2, 1:3] = y[:, None, :2] * 2


def set_constant(x: Tensor, _: Tensor) -> None:
    x[:, 1] = 0.5


def set_masked(x: Tensor, _: Tensor) -> None:
    x[x < -0.5] = 0.1


def add_part(x: Tensor, y: Tensor) -> None:
    x[:, 1] += y


def scale_view(x: Tensor, y: Tensor) -> None:
    x.view(B, -1)[:, :H].mul_(y)


def set_one_sample(x: Tensor, y: Tensor) -> None:
    x[0] = 1.0
    x[2, 1] = y[2]


def set_other_sample(x: Tensor, y: Tensor) -> None:
    x[0, 0] = y[1]


def filled_buffer() -> Tensor:
    """Outputs collected in a preallocated tensor."""
    step, out, h = nn.RNNCell(I, H), torch.zeros(B, 3, H), torch.zeros(B, H)
    for t in range(3):
        h = step(data(), h)
        out[:, t] = h
    return fit(out)


def filled_losses() -> Tensor:
    model, losses = mlp(), torch.empty(B)
    for i in range(B):
        losses[i] = model(data(1, I)).square().sum()
    return losses


def second_graph() -> Tensor:
    """Another graph on the same parameters is built, and used, before."""
    model = mlp()
    losses = fit(model(data()))
    fit(model(data(3, I))).sum().backward()
    model.zero_grad()
    return losses


def used_before() -> Tensor:
    """A backward pass through the same graph has already happened."""
    model = mlp()
    losses = fit(model(data()))
    losses.sum().backward(retain_graph=True)
    model.zero_grad()
    return losses


def detached_branch() -> Tensor:
    first, last = nn.Linear(I, H), nn.Linear(H, H)
    hidden = first(data()).tanh()
    return fit(last(hidden) * hidden.detach() + last(hidden.detach()))


def no_grad_teacher() -> Tensor:
    model = mlp()
    x = data()
    with torch.no_grad():
        target = model(x)
    return (model(x + 0.1 * torch.randn_like(x)) - target).square().sum(1)


def float64_losses() -> Tensor:
    model = mlp().float()
    return fit(model(data().float()).double())


def float64_tail() -> Tensor:
    first, last = nn.Linear(I, H).float(), nn.Linear(H, O).double()
    return fit(last(first(data().float()).tanh().double()))


def promoted() -> Tensor:
    first = nn.Linear(I, H).float()
    return fit(first(data().float()) * data(B, H).double() + torch.arange(H))


def non_leaf_input() -> Built:
    hidden = nn.Linear(I, H)(data()).tanh()
    return fit(nn.Linear(H, O)(hidden)), [hidden]


def frozen_after() -> Tensor:
    """A parameter is frozen after the forward pass: the graph still reaches it."""
    model = mlp()
    losses = fit(model(data()))
    model[0].weight.requires_grad_(True)
    return losses


def saved_on_hooks() -> Tensor:
    """Saved tensors packed to another form and unpacked on use."""
    model = mlp(nn.Linear(H, H), nn.GELU())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (t.clone(),), lambda packed: packed[0]):
        return fit(model(data()))


def compiled() -> Tensor:
    return fit(torch.compile(mlp(), backend="aot_eager")(data()))


add(
    "checkpoint",
    "sample",
    {
        "whole": checkpointed,
        "dropout": lambda: checkpointed(nn.Dropout(0.3)),
        "norm": lambda: checkpointed(nn.LayerNorm(H), nn.GELU()),
        "batch-norm-eval": lambda: checkpointed(nn.BatchNorm1d(H).eval()),
        "no-early-stop": lambda: checkpointed(preserve_rng_state=False),
        "blocks": checkpointed_blocks,
        "images": checkpointed_images,
        "sequential": checkpointed_sequential,
        "shared": checkpointed_shared,
        "nested": checkpointed_nested,
        "encoder": checkpointed_encoder,
        "saved-tensor-hooks": saved_on_hooks,
    },
)

add(
    "hook",
    None,
    {
        "scale": tensor_hook(lambda g: 2 * g),
        "feature-mask": tensor_hook(lambda g: g * torch.arange(H)),
        "clamp": tensor_hook(lambda g: g.clamp(-0.01, 0.01)),
        "unit-norm": tensor_hook(lambda g: g / g.norm()),
        "leaf": tensor_hook(lambda g: 0.5 * g, on="leaf"),
        "module": module_hook,
        "node": node_hook,
    },
    may_refuse=True,
)
add("hook", None, {"observed": observed})

add(
    "autocast",
    "sample",
    {
        "mlp": autocast(mlp),
        "tokens": autocast(mlp, B, 3, I),
        "losses-inside": autocast(mlp, enabled_losses=True),
        "shared": autocast(lambda: (lambda m: nn.Sequential(m, nn.Tanh(), m))(nn.Linear(I, I))),
        "conv": autocast(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 1)), B, 3, 5, 5),
        "norm": autocast(lambda: mlp(nn.LayerNorm(H))),
        "encoder": autocast(lambda: nn.TransformerEncoderLayer(8, 2, 10, 0.0, batch_first=True), 3, 4, 8),
    },
    dtypes=(torch.float32,),
    tol=3e-2,
)

EDITS = {
    "slice": set_first,
    "feature": set_feature,
    "strided": set_strided,
    "constant": set_constant,
    "masked": set_masked,
    "add-to-slice": add_part,
    "scale-view": scale_view,
    "one-sample": set_one_sample,
    "other-sample": set_other_sample,
}
add("inplace", None, {name: written(edit) for name, edit in EDITS.items()})
add("inplace", None, {"filled-buffer": filled_buffer, "filled-losses": filled_losses})

add(
    "graph",
    "sample",
    {
        "second-graph": second_graph,
        "used-before": used_before,
        "detached-branch": detached_branch,
        "no-grad-teacher": no_grad_teacher,
        "frozen-after": frozen_after,
        "float64-losses": float64_losses,
    },
    tol=1e-5,
)
add("graph", None, {"float64-tail": float64_tail, "promoted": promoted}, tol=1e-5)
add("graph", None, {"non-leaf-input": non_leaf_input}, may_refuse=True)
add("graph", None, {"compiled": compiled}, slow=True, may_refuse=True)


def low_precision(dtype: torch.dtype) -> Callable[[], Tensor]:
    """A model whose parameters and losses are all in ``dtype``."""

    def build() -> Tensor:
        model = mlp().to(dtype)
        return fit(model(data().to(dtype)))

    return build


def mixed_leaves() -> Tensor:
    """Leaves of three dtypes under one loss."""
    a, b, c = mlp().float(), nn.Linear(I, O).double(), mlp().bfloat16()
    x = data()
    return (a(x.float()) + c(x.bfloat16())).double().sub(b(x.double())).square().sum(1)


def complex_param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.complex(torch.randn(shape), torch.randn(shape)))


def complex_leaf(of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
    """Losses of `of` data, a complex matrix and a complex vector."""

    def build() -> Tensor:
        w, b = complex_param(I, O), complex_param(O)
        return torch.view_as_real(of(data().to(w.dtype), w, b)).sin().sum((1, 2))

    return build


LOOSE = {"dtypes": (torch.float32,), "tol": 3e-2}
add("dtype", None, {"bfloat16": low_precision(torch.bfloat16), "float16": low_precision(torch.float16)}, **LOOSE)
add("dtype", None, {"mixed-leaves": mixed_leaves}, **LOOSE)
add(
    "dtype",
    None,
    {
        "complex-leaf": complex_leaf(lambda x, w, b: x @ w),
        "complex-affine": complex_leaf(lambda x, w, b: torch.addmm(b, x, w)),
        "complex-scales": complex_leaf(lambda x, w, b: torch.addmm(b, x, w, alpha=2 - 1j, beta=0.5j)),
        "complex-conjugate": complex_leaf(lambda x, w, b: x @ w.mH.T + b.conj()),
        "complex-index-add": complex_leaf(lambda x, w, b: (x @ w).index_add(0, torch.tensor([1]), b[None], alpha=1j)),
    },
)
