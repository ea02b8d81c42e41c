"""Jacobian descent at the price of gradient descent.

`gram_backward(losses, UPGrad())` stands where `losses.mean().backward()` stood.
"""

from gramjd.aggregation import Constant, Mean, Sum, UPGrad
from gramjd.backward import GramStep, gram_backward, gramian

__all__ = ["Constant", "GramStep", "Mean", "Sum", "UPGrad", "gram_backward", "gramian"]
__version__ = "0.1.0"
