"""Elementwise operations, with broadcasting; their backward formulas broadcast over stacked rows as they are."""

from __future__ import annotations

from gramjd.engine.rules.vocabulary import Rule, all_but, named, pointwise

_FUNCTIONS = """
    Abs Acos Acosh Add Addcdiv Addcmul Angle Asin Asinh Atan Atan2 Atanh Ceil Celu Clamp ClampMax ClampMin Complex Conj
    ConjPhysical Copysign Cos Cosh Deg2Rad Digamma Div Elu Erf Erfc Erfinv Exp Exp2 Expm1 Floor Fmax Fmin Fmod Frac
    FusedDropout Hardshrink Hardsigmoid Hardswish Hardtanh Heaviside Hypot I0 Imag Ldexp LeakyRelu Lerp Lgamma Log
    Log10 Log1P Log2 LogAddExp LogAddExp2 LogSigmoid Logaddexp Logaddexp2 Logit MaskedFill MaskedScale Maximum Minimum
    Mish Mul NanToNum NativeDropout Neg Polygamma Positive Pow PreluKernel Rad2Deg Real Reciprocal Relu Relu6 Remainder
    Round Rrelu RreluWithNoise Rsqrt Rsub Sgn Sigmoid Sign Silu Sin Sinc Sinh Softplus Softshrink SpecialEntr
    SpecialErfcx SpecialI0E SpecialI1 SpecialI1E SpecialLogNdtr SpecialNdtr SpecialNdtri SpecialXlog1Py Sqrt Square Sub
    Tan Tanh Threshold Trunc Where Xlogy
"""
# Nodes of a double backward pass: derivatives of derivatives.
_DERIVATIVES = """
    EluBackward HardshrinkBackward HardswishBackward HardtanhBackward LeakyReluBackward LogSigmoidBackward
    MishBackward SigmoidBackward SiluBackward SoftplusBackward SoftshrinkBackward TanhBackward ThresholdBackward
"""
# Their backward kernels want the cotangent in the shape of the input exactly.
_STRICT = """
    BinaryCrossEntropy BinaryCrossEntropyWithLogits Gelu GeluBackward HuberLoss MseLoss SmoothL1Loss SoftMarginLoss
"""

RULES: dict[str, Rule] = {
    **named(f"{_FUNCTIONS} {_DERIVATIVES}", pointwise),
    **named(_STRICT, all_but(lambda _: [])),
}
