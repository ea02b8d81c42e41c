"""The zoo: small models, each with a trap, that the Gramian must get exactly right.

Importing the package fills ``CASES``; every module registers one family or a few.
"""

from tests.zoo import (  # noqa: F401
    activations,
    attention,
    axes,
    convolution,
    custom_functions,
    edits,
    experts,
    graph_traps,
    huggingface,
    linear_algebra,
    loss_shapes,
    losses,
    mixing,
    mlp,
    normalisation,
    physics,
    products,
    ragged,
    recurrent,
    reductions,
    reparametrised,
    routing,
    segments,
    shapes_of_tensors,
    sizes,
    tables,
    vision,
)
from tests.zoo.registry import CASES, Case

__all__ = ["CASES", "Case"]
