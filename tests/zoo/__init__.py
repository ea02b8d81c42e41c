"""The zoo: small models, each with a trap, that the Gramian must get exactly right.

Importing the package fills ``CASES``; every module registers one family.
"""

from tests.zoo import activations, losses, mlp, products
from tests.zoo.registry import CASES, Case

__all__ = ["CASES", "Case", "activations", "losses", "mlp", "products"]
