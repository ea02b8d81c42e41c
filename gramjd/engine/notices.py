"""What a user is told of a computation: where rows became dense, which leaves were left out."""

from __future__ import annotations

from collections.abc import Sequence

from gramjd.engine.graph import Graph
from gramjd.engine.node import LostAxis
from gramjd.errors import DenseRowsWarning, InputsWarning, warn

# What keeps samples apart instead, by words of the operation or the reason.
CURES = {
    "BatchNorm": "GroupNorm, LayerNorm or BatchNorm in eval() keep samples apart",
    "has no rule": "gramjd.register_rule teaches one",
}


def cure_of(lost: LostAxis) -> str:
    """What to do about an operation that made rows dense.

    >>> cure_of(LostAxis("NativeBatchNormBackward0", "normalises over the batch"))
    'GroupNorm, LayerNorm or BatchNorm in eval() keep samples apart'
    """
    said = f"{lost.operation} {lost.reason}"
    return next((cure for words, cure in CURES.items() if words in said), "docs/howto/mixing-layers.md has what to do")


def notify(noticed: Sequence[LostAxis]) -> None:
    """One notice per operation that made rows dense."""
    for lost in dict.fromkeys(noticed):
        warn(
            f"{lost.operation} {lost.reason}: from there on one dense row per loss is computed, which is exact but "
            f"slower. {cure_of(lost)}; print(gramjd.explain(losses, model)) shows where",
            DenseRowsWarning,
        )


def name_others(graph: Graph) -> None:
    """Warn of leaves that are left out of the Gramian because they are no parameters."""
    if graph.others:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in list(graph.others.values())[:4])
        warn(
            f"the Gramian is built from the {len(graph.targets.keys() - graph.others.keys())} parameters that the "
            f"losses reach, and not from {len(graph.others)} other leaves that require grad (shapes {shapes}): pass "
            "`inputs`, such as the module, to say what is meant",
            InputsWarning,
        )
