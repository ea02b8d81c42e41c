"""What a user is told of a computation: where rows became dense, which leaves were left out."""

from __future__ import annotations

from collections.abc import Sequence

from gramjd.engine.graph import Graph
from gramjd.engine.node import LostAxis
from gramjd.errors import DenseRowsWarning, InputsWarning, warn


def notify(noticed: Sequence[LostAxis]) -> None:
    """One notice per operation that made rows dense; Python shows a repeated one once."""
    for operation, reason in dict.fromkeys((lost.operation, lost.reason) for lost in noticed):
        warn(
            f"{operation} {reason}: from there on one dense row per loss is computed, which is exact but slower "
            "(gramjd.explain shows where; register_rule teaches a rule)",
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
