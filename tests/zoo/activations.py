"""Pointwise functions between two linear layers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add, net, param

Pointwise = Callable[[Tensor], Tensor]


def sandwich(f: Pointwise, width: int = 7, after: int | None = None) -> Callable[[], Tensor]:
    """Linear, ``f``, Linear; ``after`` is the width that ``f`` leaves."""
    return lambda: net(nn.Linear(6, width), f, nn.Linear(after or width, 3), shape=(5, 6))


def swish_beta() -> Tensor:
    beta = param(1)
    return net(nn.Linear(6, 7), lambda x: x * torch.sigmoid(beta * x), nn.Linear(7, 3))


def snake() -> Tensor:
    frequency = param()
    return net(nn.Linear(6, 7), lambda x: x + torch.sin(frequency * x).square(), nn.Linear(7, 3))


ACTIVATIONS: dict[str, Pointwise] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu-tanh": nn.GELU(approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "elu": F.elu,
    "softplus": F.softplus,
    "softplus-threshold": nn.Softplus(beta=2.0, threshold=0.5),
    "softsign": F.softsign,
    "leaky-relu": nn.LeakyReLU(0.2),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "hardshrink": nn.Hardshrink(0.3),
    "softshrink": nn.Softshrink(0.3),
    "tanhshrink": F.tanhshrink,
    "threshold": nn.Threshold(0.1, -0.5),
    "mish": F.mish,
    "celu": F.celu,
    "selu": F.selu,
    "logsigmoid": F.logsigmoid,
    "softmin": nn.Softmin(dim=1),
    "softmax": nn.Softmax(dim=-1),
    "log-softmax": nn.LogSoftmax(dim=1),
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log1p": lambda x: torch.log1p(x * x),
    "log-abs": lambda x: torch.log(x.abs() + 0.1),
    "sqrt": lambda x: torch.sqrt(x * x + 1),
    "rsqrt": lambda x: torch.rsqrt(x * x + 1),
    "reciprocal": lambda x: torch.reciprocal(x * x + 1),
    "sin-cos": lambda x: torch.sin(x) * torch.cos(x),
    "tan-atan": lambda x: torch.tan(0.2 * x) + torch.atan(x),
    "sinh-cosh": lambda x: torch.sinh(0.3 * x) - torch.cosh(0.2 * x),
    "asinh": torch.asinh,
    "erf": torch.erf,
    "sinc": torch.sinc,
    "sign-abs": lambda x: x.abs() * x.sign(),
    "pow-int": lambda x: x**3,
    "pow-real": lambda x: (x * x + 0.5) ** 0.7,
    "pow-base": lambda x: 1.7**x,
    "square": torch.square,
    "clamp": lambda x: x.clamp(-0.4, 0.5),
    "clamp-min": lambda x: x.clamp_min(0.1),
    "clamp-tensors": lambda x: torch.clamp(x, -torch.rand(5, 7), torch.rand(5, 7)),
    "maximum": lambda x: torch.maximum(x, -0.5 * x),
    "minimum": lambda x: torch.minimum(x, x.flip(1)),
    "fmod": lambda x: torch.fmod(x, 0.7),
    "floor-div-residue": lambda x: x - torch.floor(x),
    "lerp": lambda x: torch.lerp(x, x.tanh(), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.sin(), value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x * x + 1, value=0.5),
    "atan2": lambda x: torch.atan2(x, x.flip(1) + 3),
    "hypot": lambda x: torch.hypot(x, x.flip(1) + 1),
    "logaddexp": lambda x: torch.logaddexp(x, x.flip(1)),
    "xlogy": lambda x: torch.xlogy(x, x * x + 1),
    "nan-to-num": torch.nan_to_num,
    "ldexp": lambda x: torch.ldexp(x, torch.tensor([1, 2, 0, -1, 1, 0, 3])),
    "copysign": lambda x: torch.copysign(x, torch.randn(5, 7)),
    "dropout-0.3": nn.Dropout(0.3),
    "alpha-dropout": nn.AlphaDropout(0.3),
    "feature-dropout": lambda x: F.dropout1d(x.view(5, 7, 1), 0.4).view(5, 7),
    "rrelu-train": lambda x: F.rrelu(x, training=True),
    "gumbel-softmax": lambda x: F.gumbel_softmax(x, tau=0.7),
    "gumbel-hard": lambda x: F.gumbel_softmax(x, hard=True),
    "straight-through": lambda x: x + (x.round() - x).detach(),
    "noise": lambda x: x * torch.rand_like(x) + torch.randn_like(x),
}

add("act", "sample", {name: sandwich(f) for name, f in ACTIVATIONS.items()})

add(
    "act",
    "sample",
    {
        "glu": sandwich(F.glu, 8, 4),
        "geglu": sandwich(lambda x: x[:, :4] * F.gelu(x[:, 4:]), 8, 4),
        "swiglu-chunk": sandwich(lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], 8, 4),
        "maxout": sandwich(lambda x: x.view(5, 4, 2).amax(-1), 8, 4),
        "maxout-argmax": sandwich(lambda x: x.view(5, 4, 2).max(-1).values, 8, 4),
        "crelu": sandwich(lambda x: torch.cat([F.relu(x), F.relu(-x)], 1), 4, 8),
        "prelu-shared": lambda: net(nn.Linear(6, 7), nn.PReLU(), nn.Linear(7, 3)),
        "prelu-channel": lambda: net(nn.Linear(6, 7), nn.PReLU(7), nn.Linear(7, 3)),
        "prelu-image": lambda: net(nn.Conv2d(2, 3, 2), nn.PReLU(3), shape=(3, 2, 4, 4)),
        "swish-beta": swish_beta,
        "snake-0d": snake,
        "inplace-relu": lambda: net(nn.Linear(6, 7), nn.ReLU(inplace=True), nn.Linear(7, 3)),
        "inplace-chain": lambda: net(nn.Linear(6, 7), lambda x: x.mul_(0.5).add_(1.0).tanh_(), nn.Linear(7, 3)),
    },
)


def inside(f: Pointwise) -> Pointwise:
    """``f`` of numbers between -0.8 and 0.8."""
    return lambda x: f(0.8 * x.tanh())


def above(least: float, f: Pointwise) -> Pointwise:
    """``f`` of numbers above ``least``."""
    return lambda x: f(x * x + least)


def stepwise(f: Pointwise) -> Pointwise:
    """``f`` has slope zero or one: the product with ``x`` depends on its values as well."""
    return lambda x: x * f(x)


def as_complex(f: Pointwise) -> Pointwise:
    """Real and imaginary part of ``f`` of a complex number, side by side."""
    return lambda x: torch.view_as_real(f(torch.complex(x, x.sin()))).flatten(1)


MATHEMATICS: dict[str, Pointwise] = {
    "acos": inside(torch.acos),
    "acosh": above(1.5, torch.acosh),
    "asin": inside(torch.asin),
    "atanh": inside(torch.atanh),
    "ceil": stepwise(torch.ceil),
    "round": stepwise(torch.round),
    "round-decimals": stepwise(lambda x: torch.round(x, decimals=1)),
    "sgn": stepwise(torch.sgn),
    "trunc": stepwise(torch.trunc),
    "frac": stepwise(torch.frac),
    "deg2rad": torch.deg2rad,
    "rad2deg": torch.rad2deg,
    "digamma": above(1.0, torch.digamma),
    "lgamma": above(1.0, torch.lgamma),
    "polygamma": above(1.0, lambda x: torch.polygamma(1, x)),
    "polygamma-inplace": above(1.0, lambda x: x.polygamma_(1)),
    "erfc": torch.erfc,
    "erfcx": torch.special.erfcx,
    "erfinv": inside(torch.erfinv),
    "exp2": torch.exp2,
    "log2": above(0.5, torch.log2),
    "log10": above(0.5, torch.log10),
    "logit": lambda x: torch.logit(x.sigmoid()),
    "logit-clamped": lambda x: torch.logit(x.sigmoid(), eps=0.3),
    "i0": torch.i0,
    "i0e": torch.special.i0e,
    "i1": torch.special.i1,
    "i1e": torch.special.i1e,
    "entropy": above(0.1, torch.special.entr),
    "log-ndtr": torch.special.log_ndtr,
    "ndtr": torch.special.ndtr,
    "ndtri": lambda x: torch.special.ndtri(x.sigmoid()),
    "xlog1py": lambda x: torch.special.xlog1py(x, x * x),
    "xlog1py-of-number": above(0.1, lambda x: torch.special.xlog1py(0.7, x)),
    "xlog1py-by-number": lambda x: torch.special.xlog1py(x, 0.7),
    "xlogy-of-number": above(0.1, lambda x: torch.xlogy(0.7, x)),
    "xlogy-by-number": lambda x: torch.xlogy(x, 0.7),
    "logaddexp2": lambda x: torch.logaddexp2(x, x.flip(1)),
    "fmax": lambda x: torch.fmax(x, x[:, :1]),
    "fmin": lambda x: torch.fmin(x, param(7)),
    "fmod-tensor": lambda x: torch.fmod(x, x.flip(1).abs() + 0.3),
    "remainder": lambda x: torch.remainder(x, 0.7),
    "remainder-tensor": lambda x: torch.remainder(x, x.flip(1).abs() + 0.3),
    "div-floor": stepwise(lambda x: torch.div(x, x.flip(1).abs() + 0.3, rounding_mode="floor")),
    "div-trunc": stepwise(lambda x: torch.div(x, 0.3, rounding_mode="trunc")),
    "div-trunc-number": stepwise(lambda x: torch.ops.aten.div.Scalar_mode(x, 0.3, rounding_mode="trunc")),
    "pow-tensor": lambda x: (x * x + 0.5) ** x.flip(1),
    "copysign-number": lambda x: torch.copysign(x, -1.0),
    "rsub-tensor": lambda x: torch.rsub(x, x.sin(), alpha=2),
    "clamp-max": lambda x: x.clamp_max(0.1),
    "clamp-max-tensor": lambda x: torch.clamp_max(x, x.flip(1)),
    "clamp-min-tensor": lambda x: torch.clamp_min(x, param(7)),
    "masked-fill-parameter": lambda x: x.masked_fill(torch.rand(5, 7) > 0.5, param()),
    "native-dropout": lambda x: torch.native_dropout(x, 0.3, True)[0],
    "elu-inplace": lambda x: F.elu(x, inplace=True),
    "celu-inplace": lambda x: F.celu(x, inplace=True),
    "leaky-relu-inplace": lambda x: F.leaky_relu(x, 0.2, inplace=True),
    "threshold-inplace": lambda x: F.threshold(x, 0.1, -0.5, inplace=True),
    "rrelu-inplace": lambda x: F.rrelu(x, training=True, inplace=True),
}

add("math", "sample", {name: sandwich(f) for name, f in MATHEMATICS.items()})

add(
    "math",
    "sample",
    {
        "conj-physical": sandwich(as_complex(torch.ops.aten._conj_physical), 4, 8),
        "conj-physical-inplace": sandwich(as_complex(torch.conj_physical_), 4, 8),
    },
)
