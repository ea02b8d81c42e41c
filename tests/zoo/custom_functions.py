"""Nodes that users wrote themselves: nobody can look into them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.registry import add, fit, param

B, I, H, O = 4, 5, 6, 3


def data(*shape: int) -> Tensor:
    return torch.randn(*(shape or (B, I)))


class Swish(torch.autograd.Function):
    """The old style: no vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * (s + x * s * (1 - s))


class Cube(torch.autograd.Function):
    """The new style, vmappable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class OwnLinear(torch.autograd.Function):
    """Several inputs, one of them no tensor, gradients only where needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.scale, ctx.has_bias = scale, b is not None
        return scale * (x @ w.t() + (0 if b is None else b))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        grad = ctx.scale * grad
        need = ctx.needs_input_grad
        return (
            grad @ w if need[0] else None,
            grad.flatten(0, -2).t() @ x.flatten(0, -2) if need[1] else None,
            grad.flatten(0, -2).sum(0) if ctx.has_bias and need[2] else None,
            None,
        )


class TopHalf(torch.autograd.Function):
    """Two outputs, the second of which carries no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        values, where = x.topk(x.shape[-1] // 2, -1)
        ctx.save_for_backward(where)
        ctx.mark_non_differentiable(where)
        ctx.shape = x.shape
        return values, where

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Tensor:
        return grad.new_zeros(ctx.shape).scatter(-1, ctx.saved_tensors[0], grad)


class SplitPair(torch.autograd.Function):
    """Two differentiable outputs; the loss may use only one, whose partner's gradient arrives as None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return x * 2, x * 3

    @staticmethod
    def backward(ctx: Any, first: Tensor | None, second: Tensor | None) -> Tensor:
        terms = [k * g for k, g in ((2, first), (3, second)) if g is not None]
        return sum(terms[1:], terms[0])


class Reverse(torch.autograd.Function):
    """Gradient reversal: the backward pass is not the derivative of the forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -0.5 * grad


class BatchCentre(torch.autograd.Function):
    """Mixes the samples inside a node that nobody can look into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x - x.mean(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad - grad.mean(0)


class BatchFlip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.flip(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.flip(0)


def below_custom(f: Callable[[Tensor], Tensor], width: int = H) -> Callable[[], Tensor]:
    return lambda: fit(nn.Linear(width, O)(f(nn.Linear(I, H)(data()))))


def own_linear(bias: bool, frozen: bool = False) -> Tensor:
    first, w, b = nn.Linear(I, H), param(O, H), param(O) if bias else None
    w.requires_grad_(not frozen)
    return fit(OwnLinear.apply(first(data()).tanh(), w, b, 0.7))


add(
    "custom",
    None,
    {
        "pointwise": below_custom(Swish.apply),
        "pointwise-vmappable": below_custom(Cube.apply),
        "linear": lambda: own_linear(True),
        "linear-no-bias": lambda: own_linear(False),
        "linear-frozen": lambda: own_linear(True, True),
        "two-outputs-one-index": below_custom(lambda x: TopHalf.apply(x)[0], 3),
        "two-outputs": below_custom(lambda x: sum(SplitPair.apply(x)) * x),
        "two-outputs-one-used": below_custom(lambda x: SplitPair.apply(x)[1].tanh()),
        "reversal": below_custom(Reverse.apply),
        "permutes-samples": below_custom(BatchFlip.apply),
    },
)
add("custom", "dense", {"mixes-samples": below_custom(BatchCentre.apply)})
