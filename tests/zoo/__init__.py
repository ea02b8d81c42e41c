"""The zoo: small models, each with a trap, that the Gramian must get exactly right.

Importing the package fills ``CASES``; every module registers one family.
"""

from tests.zoo import activations, convolution, loss_shapes, losses, mlp, normalisation, products, vision  # noqa: F401
from tests.zoo.registry import CASES, Case

__all__ = ["CASES", "Case"]
