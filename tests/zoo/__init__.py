"""The zoo: small models, each with a trap, that the Gramian must get exactly right.

Importing the package fills ``CASES``; every module registers one family.
"""

from tests.zoo import (  # noqa: F401
    activations,
    attention,
    convolution,
    loss_shapes,
    losses,
    mlp,
    normalisation,
    products,
    recurrent,
    routing,
    tables,
    vision,
)
from tests.zoo.registry import CASES, Case

__all__ = ["CASES", "Case"]
