"""Elementwise operations, with broadcasting; their backward formulas broadcast over stacked rows as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gramjd.engine.cotangent import Cotangent
from gramjd.engine.node import NodeView, Rule, Sends
from gramjd.engine.rules.vocabulary import mixing, named, overwriting, pointwise

_aten = torch.ops.aten

_FUNCTIONS = """
    Abs Acos Acosh Add Addcdiv Addcmul Angle Asin Asinh Atan Atan2 Atanh Ceil Celu Clamp ClampMax ClampMin Complex
    Conj ConjPhysical Copysign Cos Cosh Deg2Rad Digamma Div Elu Erf Erfc Erfinv Exp Exp2 Expm1 Floor Fmax Fmin Fmod
    Frac FusedDropout Hardshrink Hardsigmoid Hardswish Hardtanh Hypot I0 Ldexp LeakyRelu Lerp Lgamma Log Log10 Log1P
    Log2 LogSigmoid Logaddexp Logaddexp2 Logit MaskedFill Maximum Minimum Mish Mul NanToNum NativeDropout Neg Polar
    Polygamma Pow PreluKernel Rad2Deg Reciprocal Relu Remainder Round RreluWithNoise Rsqrt Rsub Sgn Sigmoid Sign Silu
    Sin Sinc Sinh Softplus Softshrink SpecialEntr SpecialErfcx SpecialI0E SpecialI1 SpecialI1E SpecialLogNdtr
    SpecialNdtri SpecialXlog1Py Sqrt StandardGamma Sub Tan Tanh Threshold Trunc Where Xlogy
"""
# Nodes of a double backward pass: derivatives of derivatives.
_DERIVATIVES = """
    EluBackward HardshrinkBackward HardswishBackward HardtanhBackward LeakyReluBackward LogSigmoidBackward
    SigmoidBackward SoftplusBackward SoftshrinkBackward TanhBackward ThresholdBackward
"""
# Their backward kernels want the cotangent in the shape of the input exactly.
_STRICT = """
    BinaryCrossEntropy BinaryCrossEntropyWithLogits FakeQuantizePerChannelAffineCachemask
    FakeQuantizePerTensorAffineCachemask FakeQuantizePerTensorAffineCachemaskTensorQparams FusedMovingAvgObsFqHelper
    Gelu GeluBackward HuberLoss MseLoss SmoothL1Loss SoftMarginLoss
"""

Formula = Callable[[NodeView, Tensor], Tensor]
# What a node computes from a cotangent c, written over it.
_FORMULAS: dict[str, Formula] = {
    "Relu": lambda v, c: _aten.threshold_backward.grad_input(c, v.saved("result"), 0, grad_input=c),
    "Tanh": lambda v, c: _aten.tanh_backward.grad_input(c, v.saved("result"), grad_input=c),
    "Sigmoid": lambda v, c: _aten.sigmoid_backward.grad_input(c, v.saved("result"), grad_input=c),
    "Silu": lambda v, c: _aten.silu_backward.grad_input(c, v.saved("self"), grad_input=c),
    "Gelu": lambda v, c: _aten.gelu_backward.grad_input(
        c, v.saved("self"), approximate=v.saved("approximate"), grad_input=c
    ),
    "Elu": lambda v, c: _aten.elu_backward.grad_input(
        c, v.saved("alpha"), v.saved("scale"), v.saved("input_scale"), False, v.saved("self"), grad_input=c
    ),
    "LeakyRelu": lambda v, c: _aten.leaky_relu_backward.grad_input(
        c, v.saved("self"), v.saved("negative_slope"), False, grad_input=c
    ),
}


def _filled_with(node: NodeView) -> Sends:
    """masked_fill with a tensor: the node adds up the gradient of the value, over all rows as well."""
    for edge in node.wanted:
        for cotangent in node.cotangents():
            yield node.send(edge, cotangent.layout, _masked(node, cotangent, edge == 0), node.output().shape)


def _masked(node: NodeView, cotangent: Cotangent, kept: bool) -> Callable[[], Tensor]:
    def compute() -> Tensor:
        mask = node.saved("mask")
        return cotangent.values.masked_fill(mask if kept else ~mask, 0)

    return compute


RULES: dict[str, Rule] = {
    **named(f"{_FUNCTIONS} {_DERIVATIVES}", pointwise),
    "MaskedFillBackward1": _filled_with,
    **named(_STRICT, mixing(lambda _: [])),
    **{f"{name}Backward0": overwriting(formula, name in _STRICT.split()) for name, formula in _FORMULAS.items()},
}
