"""Elementwise operations, with broadcasting; their backward formulas broadcast over stacked rows as they are."""

from __future__ import annotations

from gramjd.engine.rules.vocabulary import Rule, pointwise

_UNARY = """
Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Clamp Cos Cosh Deg2Rad Digamma Elu Erf Erfc Erfinv Exp Exp2 Expm1 Floor
Frac Gelu Hardshrink Hardsigmoid Hardswish Hardtanh I0 LeakyRelu Lgamma Log Log10 Log1P Log2 LogSigmoid Logit Mish
NanToNum Neg Polygamma Positive Rad2Deg Reciprocal Relu Relu6 Round Rrelu RreluWithNoise Rsqrt Sgn Sigmoid Sign Silu Sin Sinc Sinh
Softplus Softshrink Sqrt Square Tan Tanh Threshold Trunc SpecialNdtri SpecialNdtr SpecialEntr SpecialErfcx SpecialI0E
SpecialI1 SpecialI1E SpecialLogNdtr NativeDropout BernoulliBackward
""".split()
_BINARY = """
Add Addcdiv Addcmul Atan2 Copysign Div Fmax Fmin Fmod Hypot Lerp LogAddExp LogAddExp2 Logaddexp Logaddexp2 MaskedFill
Maximum Minimum Mul Pow PreluKernel Remainder Rsub Sub Where Xlogy SpecialXlog1Py FusedDropout
MaskedScale ClampMin ClampMax Ldexp Real Imag Angle Conj Complex ConjPhysical Heaviside
""".split()
_DOUBLE = """
EluBackward GeluBackward HardshrinkBackward HardswishBackward HardtanhBackward LeakyReluBackward LogSigmoidBackward
SigmoidBackward SiluBackward SoftplusBackward SoftshrinkBackward TanhBackward ThresholdBackward MishBackward
""".split()
_LOSSES = """
BinaryCrossEntropy BinaryCrossEntropyWithLogits HuberLoss MseLoss SmoothL1Loss SoftMarginLoss
""".split()

RULES: dict[str, Rule] = {
    f"{name}Backward{n}": pointwise for name in (*_UNARY, *_BINARY, *_DOUBLE, *_LOSSES) for n in range(5)
}
