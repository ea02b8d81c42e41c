"""Jacobian descent at the price of gradient descent.

`gram_backward(losses, UPGrad())` stands where `losses.mean().backward()` stood.
"""

from gramjd.aggregation import Constant, Mean, Sum, UPGrad
from gramjd.backward import GramStep, gram_backward, mtl_backward
from gramjd.capture import capture
from gramjd.engine.rules import register_rule
from gramjd.explain import Explanation, explain
from gramjd.gramians import gradient_norms, gramian

__all__ = [
    "Constant",
    "Explanation",
    "GramStep",
    "Mean",
    "Sum",
    "UPGrad",
    "capture",
    "explain",
    "gradient_norms",
    "gram_backward",
    "gramian",
    "mtl_backward",
    "register_rule",
]
__version__ = "0.2.0.dev0"
